// Actions of the operator, disconnect and reload. A dialog shows first what will happen.

import { byId, setItems, setShown, setText } from "./dom.js";
import { plural } from "./format.js";

const UNCHANGED = "The config has not changed.";

for (const dialog of document.querySelectorAll("dialog")) {
  for (const button of dialog.querySelectorAll("[data-close]")) button.addEventListener("click", () => dialog.close());
}

let toastTimer = null;

/** Show a message at the bottom of the page for six seconds. */
export function toast(text) {
  const node = byId("toast");
  node.textContent = text;
  setShown(node, true);
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => setShown(node, false), 6000);
}

export class Disconnect {
  #link;
  #dialog = byId("disconnect-dialog");
  #confirm = byId("disconnect-confirm");
  #error = byId("disconnect-error");
  #target = null;

  constructor(link) {
    this.#link = link;
    this.#confirm.addEventListener("click", () => this.#act());
  }

  ask(interfaceName, client) {
    this.#target = { interface: interfaceName, client };
    setText(byId("disconnect-title"), `Disconnect ${client}?`);
    this.#error.textContent = "";
    this.#confirm.disabled = false;
    this.#dialog.showModal();
  }

  async #act() {
    this.#confirm.disabled = true;
    const { client } = this.#target;
    try {
      const { sessions } = await this.#link.act("api/disconnect", this.#target);
      this.#dialog.close();
      toast(sessions ? `${client} was disconnected` : `${client} was not connected`);
    } catch (error) {
      this.#error.textContent = `${client} was not disconnected: ${error.message}`;
      this.#confirm.disabled = false;
    }
  }
}

export class Reload {
  #link;
  #dialog = byId("reload-dialog");
  #text = byId("reload-text");
  #changes = byId("reload-changes");
  #error = byId("reload-error");
  #apply = byId("reload-apply");
  #close = byId("reload-close");
  #round = 0; // a response for a dialog that has been closed is not shown in the next one

  constructor(link) {
    this.#link = link;
    byId("reload-button").addEventListener("click", () => this.#preview());
    this.#apply.addEventListener("click", () => this.#act());
  }

  async #preview() {
    this.#render("Reading the config…", [], "");
    this.#close.textContent = "Cancel";
    this.#dialog.showModal();
    const found = await this.#ask(true);
    if (found === null) return;
    if (found.length) {
      this.#render(`This will change (${plural(found.length, "change")}):`, found, "");
      setShown(this.#apply, true);
      this.#apply.focus();
    } else {
      this.#render(UNCHANGED, [], "");
      this.#close.textContent = "Close";
    }
  }

  async #act() {
    this.#apply.disabled = true;
    setText(this.#text, "Applying…");
    const done = await this.#ask(false);
    if (done === null) return;
    this.#render(done.length ? "Done:" : UNCHANGED, done, "");
    this.#close.textContent = "Close";
    this.#close.focus();
  }

  /** One line for each change; null after an error, or if the dialog has been closed. */
  async #ask(dryRun) {
    this.#round += 1;
    const round = this.#round;
    try {
      const { changes } = await this.#link.act("api/reload", { dry_run: dryRun });
      return round === this.#round && this.#dialog.open ? changes : null;
    } catch (error) {
      if (round !== this.#round) return null;
      this.#render("", [], error.message);
      this.#close.textContent = "Close";
      return null;
    }
  }

  #render(text, changes, error) {
    setText(this.#text, text);
    setItems(this.#changes, changes);
    this.#error.textContent = error;
    this.#apply.disabled = false;
    setShown(this.#apply, false);
  }
}
