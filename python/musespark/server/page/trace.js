/**
 * What an answer says of pictures: each picture with the places drawn over it, and beside it the
 * sentences that name them. From the server's `visual_trace` (musespark.visual-trace, version 1),
 * whose points are in pixels of the original.
 */

import { draw, make } from "./dom.js";

const MOST = 200; // places that are drawn

/** `urls`: the conversation's pictures, in order. Null where nothing is named. */
export function traceView(trace, urls) {
  const originals = trace.images.filter((image) => image.parent === null);
  const sources = new Map(originals.map((image, i) => [image.id, urls[i]]));
  const places = placesOf(trace);
  if (!places.length) return null;
  const pictures = originals
    .filter((image) => sources.get(image.id) && places.some((one) => one.image === image.id))
    .map((image) => pictureView(image, sources.get(image.id), places));
  const steps = trace.steps.filter((step) => step.regions.length);
  const list = make("ol", { class: "sayings" }, ...steps.map((step) => stepView(step, places)));
  const view = make("figure", { class: "trace" },
    make("div", { class: "pictures" }, ...pictures),
    make("figcaption", {}, list));
  for (const kind of ["pointerover", "focusin"]) {
    view.addEventListener(kind, (event) => pointTo(view, event.target));
  }
  for (const kind of ["pointerleave", "focusout"]) {
    view.addEventListener(kind, () => pointTo(view, null));
  }
  return view;
}

/** Places by what they are: the same place has one number, however often it is named. */
function placesOf(trace) {
  const images = new Map(trace.images.map((image) => [image.id, image]));
  const places = new Map();
  for (const step of trace.steps) {
    for (const region of step.regions) {
      if (!region.points.length || places.size === MOST) continue;
      let image = images.get(region.image || step.image || trace.images[0].id);
      while (image.parent !== null) image = images.get(image.parent);
      const key = JSON.stringify([image.id, region.kind, region.points]);
      const place = places.get(key) ?? { number: places.size + 1, image: image.id, regions: [] };
      place.kind = region.kind;
      place.points = region.points;
      place.answers ||= step.channel === "content";
      place.regions.push(region);
      places.set(key, place);
    }
  }
  return [...places.values()];
}

function pictureView(image, url, places) {
  const [height, width] = image.size;
  const own = places.filter((one) => one.image === image.id);
  const shapes = own.filter((one) => one.kind !== "point").map(shapeView);
  const drawing = draw("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...shapes);
  const percent = ([x, y]) => [`${(100 * x) / width}%`, `${(100 * y) / height}%`];
  const tags = own.flatMap((one) => {
    const tag = make("span", { class: classes("tag", one), "data-place": one.number }, `${one.number}`);
    const dot = make("i", { class: classes("dot", one), "data-place": one.number });
    for (const made of [tag, dot]) {
      [made.style.left, made.style.top] = percent(corner(one.points, width, height));
    }
    return one.kind === "point" ? [dot, tag] : [tag];
  });
  const name = `A picture with ${own.length === 1 ? "one place" : `${own.length} places`} marked`;
  const shown = make("img", { src: url, alt: name, width, height });
  return make("div", { class: "picture" }, shown, drawing, ...tags);
}

function classes(first, place) {
  return `${first} ${place.kind} ${place.answers ? "of-answer" : "of-thought"}`;
}

/** A light line under a coloured one, to be seen on any ground. */
function shapeView(place) {
  const outline = place.kind === "box" ? boxCorners(place.points) : place.points;
  const points = outline.map(([x, y]) => `${x},${y}`).join(" ");
  return draw("g", { class: classes("shape", place), "data-place": place.number },
    draw("polygon", { class: "under", points }), draw("polygon", { class: "line", points }));
}

function boxCorners([[left, top], [right, bottom]]) {
  return [[left, top], [right, top], [right, bottom], [left, bottom]];
}

/** Where the number stands: the upper left, within the picture. */
function corner(points, width, height) {
  const left = Math.min(...points.map(([x]) => x));
  const top = Math.min(...points.map(([, y]) => y));
  return [Math.min(Math.max(left, 0), width), Math.min(Math.max(top, 0), height)];
}

/** A sentence, with numbers where it names places. Spans count characters, not UTF-16 units. */
function stepView(step, places) {
  const characters = [...step.text];
  const children = [];
  let end = 0;
  for (const region of step.regions) {
    const place = places.find((one) => one.regions.includes(region));
    const [from, to] = region.span;
    if (!place || from < end) continue;
    children.push(characters.slice(end, from).join(""), chip(place, region));
    end = to;
  }
  children.push(characters.slice(end).join(""));
  const answers = step.channel === "content";
  if (answers) children.unshift("Answer: ");
  return make("li", { class: answers ? "of-answer" : "of-thought", dir: "auto" }, ...children);
}

function chip(place, region) {
  const numbers = region.points.flat().map((one) => Math.round(one)).join(", ");
  const flags = region.flags.length ? ` (${region.flags.join(", ")})` : "";
  const words = `${region.kind} at ${numbers}${flags}`;
  const attributes = { class: classes("chip", place), "data-place": place.number, tabindex: "0" };
  const name = `Place ${place.number}, ${words}`;
  const made = make("span", { ...attributes, role: "img", "aria-label": name, title: words });
  made.append(`${place.number}`);
  return region.flags.length ? make("span", {}, made, make("small", {}, flags)) : made;
}

/** Brings out the place that the pointer or the focus is on. */
function pointTo(view, target) {
  const place = target?.closest?.("[data-place]")?.dataset.place;
  view.classList.toggle("pointing", place !== undefined);
  for (const one of view.querySelectorAll("[data-place]")) {
    one.classList.toggle("here", one.dataset.place === place);
  }
}
