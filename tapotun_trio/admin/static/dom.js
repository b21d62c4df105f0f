// Making and changing elements. All text goes through textContent: nothing that came over the network is ever markup.

/** The element with that id, which index.html has. */
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

const shown = new WeakMap(); // what setText and setData wrote last: reading the DOM back costs more than this

/** Change the text, if it is another one. */
export function setText(node, text) {
  if (shown.get(node) === text) return;
  shown.set(node, text);
  node.textContent = text;
}

/** Change an attribute, if it is another one; null takes it away. */
export function setAttribute(node, name, value) {
  if (node.getAttribute(name) === value) return;
  if (value === null) node.removeAttribute(name);
  else node.setAttribute(name, value);
}

/** Show or hide it. */
export function setShown(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

/** Have exactly these children in this order. What is in its place is not touched, and the focus stays where it is. */
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

/** The items as a plain list, rebuilt only if they are other ones. */
export function setItems(list, items) {
  const key = items.join("\n");
  if (shown.get(list) === key) return;
  shown.set(list, key);
  list.replaceChildren(...items.map((item) => el("li", {}, item)));
}

/** Keyed children of a parent: made when they come, kept while they stay, removed when they go. */
export class Keyed {
  #made = new Map();
  #parent;
  #make;

  /** `make(key)`: returns something with `nodes`, its elements, which may come to be more or fewer. */
  constructor(parent, make) {
    this.#parent = parent;
    this.#make = make;
  }

  /** Have the children for these keys, in this order. Returns what `make` returned for each. */
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
