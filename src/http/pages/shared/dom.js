// Makes elements from data. Text is always set as text, so that a user's input is never read as HTML.

const SVG = 'http://www.w3.org/2000/svg';

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === 'on') {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (name === 'data') {
      Object.assign(element.dataset, value);
    } else {
      element.setAttribute(name, value === true ? '' : String(value));
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element with attributes, `on` listeners, `data`, and children (elements or text). */
export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** An SVG element. */
export function svg(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

/** One of the page's icons, hidden from screen readers. */
export function icon(name) {
  return svg('svg', { class: 'icon', 'aria-hidden': 'true', viewBox: '0 0 24 24' }, svg('use', { href: `#i-${name}` }));
}

/** Sets an element's text, unless it has that text already. */
export function text(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

/**
 * Makes the children of `list` those of `items`, by key. An element whose key stays is kept, so that its focus, typed
 * text and running transitions survive.
 */
export function keyed(list, items, keyOf, make, update) {
  const wanted = new Set(items.map((item) => String(keyOf(item))));
  const present = new Map();
  // Removed elements go first: an element that is moved would lose the focus.
  for (const child of [...list.children]) {
    if (wanted.has(child.dataset.key)) present.set(child.dataset.key, child);
    else child.remove();
  }
  let next = list.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let element = present.get(key);
    if (!element) {
      element = make(item);
      element.dataset.key = key;
    }
    update?.(element, item);
    if (element === next) next = next.nextElementSibling;
    else list.insertBefore(element, next);
  }
}

/** Whether the user's system is set to reduced motion. */
export const calm = () => matchMedia('(prefers-reduced-motion: reduce)').matches;

/** Announces a text to screen readers. */
export function announce(words) {
  const region = document.getElementById('announcer');
  if (region) region.textContent = words;
}
