/** A thought, folded: its last words run by in the summary while it is being thought. */

import { make, onceAFrame } from "./dom.js";

const TAIL = 160; // characters

export class Thought {
  constructor() {
    this.text = "";
    this.title = make("span", { class: "thought-title" }, "Thinking");
    this.tail = make("span");
    this.body = make("div", { class: "thought-text", dir: "auto" });
    this.element = make("details", { class: "thought live", hidden: true },
      make("summary", {}, this.title,
        make("span", { class: "thought-tail", "aria-hidden": "true" }, this.tail)), this.body);
    this.began = performance.now();
    this.shows = onceAFrame(() => this.#show());
  }

  add(text) {
    if (!this.text) this.began = performance.now();
    this.text += text;
    this.element.hidden = false;
    this.shows.soon();
  }

  /** It is over: the answer has begun, or there is none. */
  close() {
    if (!this.element.classList.contains("live")) return;
    this.element.classList.remove("live");
    const seconds = (performance.now() - this.began) / 1000;
    this.title.textContent = seconds < 1 ? "Thought" : `Thought for ${seconds.toFixed(0)} s`;
    this.tail.textContent = "";
    this.shows.now();
  }

  #show() {
    this.body.textContent = this.text;
    if (!this.element.classList.contains("live")) return;
    this.tail.textContent = this.text.trimEnd().split("\n").at(-1).slice(-TAIL);
  }
}
