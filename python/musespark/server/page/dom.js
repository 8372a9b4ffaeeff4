/** Elements, made without HTML: a text is always a text. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element. `attributes`: names of ours with values; null, undefined and false leave one out.
 * `children`: elements, and texts as they are.
 */
export function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for a drawing. */
export function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A button that is no submit button. */
export function button(text, act, attributes = {}) {
  const made = make("button", { type: "button", ...attributes }, text);
  made.addEventListener("click", act);
  return made;
}

/**
 * A button that copies what `text` gives; null where a page may not (it may over https, and on the
 * machine of the browser itself).
 */
export function copyButton(text) {
  if (!navigator.clipboard) return null;
  const made = button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(text());
      made.textContent = "Copied";
    } catch (error) {
      made.textContent = `Not copied: ${error.message}`;
    }
    setTimeout(() => { made.textContent = "Copy"; }, 2000);
  }, { class: "quiet small" });
  return made;
}

/** Runs `act` before the next frame, once for however many calls until then. */
export function onceAFrame(act) {
  let waiting = 0;
  return {
    soon() { waiting ||= requestAnimationFrame(() => { waiting = 0; act(); }); },
    now() { cancelAnimationFrame(waiting); waiting = 0; act(); },
  };
}
