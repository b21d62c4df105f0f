// The page: passes the daemon's messages to the views, and always shows the state of the connection.

import { Disconnect, Reload, toast } from "./actions.js";
import { byId, setItems, setShown, setText } from "./dom.js";
import { Events } from "./events.js";
import { clock, moment, since, span } from "./format.js";
import { History } from "./history.js";
import { Interfaces } from "./interfaces.js";
import { Link } from "./link.js";
import { pastSamples, peersOf, samplesOf, troubles, updateLines } from "./model.js";
import { Peers } from "./peers.js";
import { forgetColours, sparksShown } from "./plot.js";
import { Traffic } from "./traffic.js";
import { Troubles } from "./troubles.js";

const history = new History();
const link = new Link({
  state: showLink,
  status: showStatus,
  events: (message) => events.add(message.events),
  history: (past) => history.fill(pastSamples(past)),
});
const disconnect = new Disconnect(link);
new Reload(link);
const events = new Events();
const traffic = new Traffic(history, (from) => events.since(from));
const plot = (key) => traffic.select(key);
const interfaces = new Interfaces(plot, () => link.read("api/macs"));
const peers = new Peers({ history, plot, disconnect: (...client) => disconnect.ask(...client) });
const drops = new Troubles();
let firstVersion = null;
let wasLost = null; // ms
let name = "tapotun";
let title = "tapotun"; // of the window

function showStatus({ at, status }) {
  const now = Date.parse(at); // the daemon's clock, because this machine's may be wrong
  firstVersion ??= status.version;
  setShown(byId("newer"), status.version !== firstVersion);
  name = status.name === String(status.pid) ? "tapotun" : status.name;
  setText(byId("process-name"), name);
  setText(byId("process-host"), status.hostname ? `on ${status.hostname}` : "");
  title = status.hostname ? `${name} on ${status.hostname}` : name;
  const up = `up for ${since(status.started_at, now)}`;
  const about = [`tapotun ${status.version}`, `pid ${status.pid}`, up, status.config_file];
  setText(byId("process-about"), about.join(" · "));
  setShown(byId("main"), true);
  const all = peersOf(status, now);
  const found = troubles(status, all);
  history.push(now, samplesOf(status, all));
  traffic.update(status, all, found, now);
  interfaces.update(status, all, now);
  peers.update(all, now);
  drops.update(found, now);
  showConfig(status, now);
  const update = updateLines(status.update);
  setItems(byId("update-lines"), update);
  setShown(byId("update"), update.length > 0);
}

function showConfig(status, now) {
  const reload = status.last_reload;
  setText(byId("config-file"), status.config_file);
  setText(byId("reload-file"), status.config_file);
  setItems(byId("config-changes"), reload?.changes ?? []);
  setText(byId("config-error"), reload?.error ?? "");
  const when = reload === null ? "" : `${moment(Date.parse(reload.at))}, ${since(reload.at, now)} ago`;
  let text = "Read at the start, not reloaded since.";
  if (reload?.error != null) text = `The last reload, ${when}, was refused, and the old config stays in use:`;
  else if (reload?.changes.length) text = `Changed by the last reload, ${when}:`;
  else if (reload !== null) text = `Reloaded ${when}: nothing had changed.`;
  setText(byId("config-when"), text);
}

const LINK_TEXTS = { login: "not logged in", connecting: "connecting", live: "live", lost: "lost" };

function showLink() {
  const { state } = link;
  setShown(byId("login"), state === "login");
  setShown(byId("panel"), state !== "login");
  document.documentElement.dataset.link = state;
  const readOnly = link.session?.may_act === false;
  document.documentElement.dataset.access = readOnly ? "read" : "full"; // panel.css hides actions
  setShown(byId("read-only"), readOnly);
  byId("link-state").dataset.state = state;
  setText(byId("link-text"), LINK_TEXTS[state]);
  for (const button of document.querySelectorAll("[data-needs-link]")) button.disabled = state !== "live";
  for (const dialog of document.querySelectorAll("dialog[open]")) if (state === "login") dialog.close();
  if (state === "login") {
    setText(byId("login-why"), link.why);
    byId("token").focus();
  }
  if (state === "lost" && wasLost === null) {
    wasLost = link.lostAt;
    events.note("error", `connection to the daemon lost: ${link.why}`);
  } else if (state === "live" && wasLost !== null) {
    events.note("info", `connected to the daemon again after ${span(Date.now() - wasLost)}`);
    wasLost = null;
  }
  tick();
}

// Updates between messages: how long the connection has been lost, and when the next attempt is.
function tick() {
  const lost = link.lostAt !== null && link.state !== "login";
  setShown(byId("lost"), lost);
  document.title = link.state === "login" ? "tapotun" : lost ? `Lost: ${title}` : title;
  if (!lost) return;
  const { state, lostAt, nextTryAt } = link;
  setText(byId("lost-what"), `Lost since ${clock(lostAt)}: ${link.why}.`);
  const waits = state === "lost" && nextTryAt !== null;
  const wait = waits ? `Next attempt in ${span(nextTryAt - Date.now() + 999)}.` : "Trying…";
  const stale = byId("main").hidden ? "" : "Everything below is older. ";
  setText(byId("lost-next"), `That was ${span(Date.now() - lostAt)} ago. ${stale}${wait}`);
}

byId("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [field, button, error] = [byId("token"), byId("login-button"), byId("login-error")];
  button.disabled = true;
  error.textContent = "";
  try {
    await link.login(field.value);
    field.value = "";
  } catch (refusal) {
    error.textContent = refusal.status === 401 ? "This token is wrong." : `Login failed: ${refusal.message}.`;
    field.focus();
    field.select();
  } finally {
    button.disabled = false;
  }
});
byId("logout-button").addEventListener("click", () => {
  link.logout().catch((error) => toast(`Not logged out: ${error.message}`));
});
byId("retry-button").addEventListener("click", () => link.retry());
byId("refresh-button").addEventListener("click", () => location.reload());
for (const appearance of [matchMedia("(prefers-color-scheme: dark)"), sparksShown]) {
  appearance.addEventListener("change", () => {
    forgetColours();
    traffic.plot();
    peers.repaint();
  });
}
setInterval(tick, 1000);
link.start();
