// Makes and changes elements. All text goes through textContent: text from the network never becomes markup.

/** The element of index.html with that id. */
export function byId(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`index.html has no #${id}`);
  return found;
}

/** A new element: `el("td", {class: "name"}, "text", child)`. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const shown = new WeakMap(); // what setText and setItems wrote last; reading it from the DOM is slower

/** Set the text, if it differs. */
export function setText(node, text) {
  if (shown.get(node) === text) return;
  shown.set(node, text);
  node.textContent = text;
}

/** Set an attribute, if it differs; null removes it. */
export function setAttribute(node, name, value) {
  if (node.getAttribute(name) === value) return;
  if (value === null) node.removeAttribute(name);
  else node.setAttribute(name, value);
}

/** Show or hide an element. */
export function setShown(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

/** Give a parent exactly these children in this order. A child that is already in its place keeps the focus. */
export function setChildren(parent, wanted) {
  const focused = document.activeElement;
  const staying = new Set(wanted);
  for (const node of [...parent.children]) if (!staying.has(node)) node.remove();
  let at = parent.firstElementChild;
  for (const node of wanted) {
    if (node === at) at = at.nextElementSibling;
    else parent.insertBefore(node, at);
  }
  if (focused !== document.activeElement && parent.contains(focused)) focused.focus({ preventScroll: true });
}

/** Show the items as a list, rebuilt only if they differ. */
export function setItems(list, items) {
  const key = items.join("\n");
  if (shown.get(list) === key) return;
  shown.set(list, key);
  list.replaceChildren(...items.map((item) => el("li", {}, item)));
}

/** Children of a parent by key: made for a new key, kept while the key stays, removed with it. */
export class Keyed {
  #made = new Map();
  #parent;
  #make;

  /** `make(key)` returns a view whose `nodes` are its elements; their number may change. */
  constructor(parent, make) {
    this.#parent = parent;
    this.#make = make;
  }

  /** Show the children for these keys, in this order. Returns the view of each. */
  update(keys) {
    const wanted = new Set(keys);
    for (const key of this.#made.keys()) if (!wanted.has(key)) this.#made.delete(key);
    const views = keys.map((key) => {
      if (!this.#made.has(key)) this.#made.set(key, this.#make(key));
      return this.#made.get(key);
    });
    setChildren(this.#parent, views.flatMap((view) => view.nodes));
    return views;
  }
}
