/** A question and its answer, as they are shown. */

import { Board } from "./board.js";
import { button, copyButton, make, onceAFrame } from "./dom.js";
import { renderMarkdown } from "./markdown.js";
import { Thought } from "./thought.js";
import { traceView } from "./trace.js";

const THOUGHT_ENDS = {
  budget: "The thought ended with its budget.",
  confident: "The thought ended early: it was sure.",
  stable: "The thought ended early: its answer stayed the same.",
  hopeless: "The thought ended early: it led nowhere.",
  loop: "The thought ended early: it went in circles.",
  deadline: "The thought ran out of time.",
};
const FULL = "context_length_exceeded"; // the server's code for it
const TITLES = {
  0: "No connection", 401: "The token is missing or wrong", 413: "Too much at once",
  429: "Busy", 503: "Not now",
};

export class Turn {
  /**
   * `question`: {text, pictures}. `urls`: all pictures of the conversation, with these. `acts`:
   * {edit, again, anew}, what its buttons do. `room`: {first, context}, whether nothing is before
   * it, and the tokens of a whole chat.
   */
  constructor(question, urls, acts, room) {
    this.acts = acts;
    this.room = room;
    this.question = question;
    this.urls = urls;
    this.answer = "";
    this.reasoning = "";
    this.state = "running"; // then done, stopped or failed
    this.usage = null;
    this.choice = null;
    this.board = null;
    this.thought = new Thought();
    this.body = make("div", { class: "prose" });
    this.notes = make("div", { class: "notes" });
    this.waiting = make("p", { class: "waiting", "aria-hidden": "true" }, make("i"), make("i"), make("i"));
    this.reply = make("article", { class: "reply", "aria-label": "Answer", "aria-busy": "true" },
      this.waiting, this.thought.element, this.body, this.notes);
    this.element = make("section", { class: "turn" }, questionView(question, acts.edit), this.reply);
    this.shows = onceAFrame(() => renderMarkdown(this.body, this.answer));
  }

  /** Whether what follows builds on this turn. */
  get counts() {
    return this.state !== "failed" && this.state !== "running" && this.answer !== "";
  }

  /** A chunk of the stream. */
  take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const [choice] = chunk.choices;
    if (!choice) return;
    this.#delta(choice.delta);
    if (choice.finish_reason) this.choice = choice;
  }

  #delta(delta) {
    if (delta.agent) this.#agent(delta.agent);
    const begins = !this.answer;
    if (delta.reasoning) this.#think(delta.reasoning);
    if (delta.content) {
      this.thought.close();
      this.answer += delta.content;
      if (begins) this.waiting.remove();
      this.shows.soon();
    }
    for (const call of delta.tool_calls ?? []) this.#note(callView(call));
  }

  #agent(piece) {
    if (!this.board) {
      this.board = new Board();
      this.waiting.remove();
      this.body.before(this.board.element);
    }
    this.board.add(piece);
  }

  #think(text) {
    this.reasoning += text;
    if (this.board) return; // it is that of an agent, and stands on its card
    this.waiting.remove();
    this.thought.add(text);
  }

  /** It is over: "done", "stopped", or "failed" with an error. `again`: asks it once more. */
  end(state, error = null, again = null) {
    this.state = state;
    this.waiting.remove();
    this.thought.close();
    this.shows.now();
    this.reply.setAttribute("aria-busy", "false");
    if (this.choice?.agents) this.board?.end(this.choice);
    else this.board?.halt();
    if (this.choice?.visual_trace) {
      const trace = traceView(this.choice.visual_trace, this.urls);
      if (trace) this.notes.before(trace);
    }
    for (const remark of this.#remarks()) this.#note(make("p", { class: "remark" }, remark));
    if (this.#full()) this.#note(button("New chat", this.acts.anew, { class: "quiet" }));
    if (error) this.#note(errorView(error, this.#wayOut(error, again)));
    this.#note(this.#facts());
  }

  /** Whether the chat has no room for what would follow. */
  #full() {
    if (this.choice?.finish_reason !== "length" || !this.usage) return false;
    if (!this.counts && this.room.first) return false; // nothing of it stays
    const { prompt_tokens: prompt, completion_tokens: written } = this.usage;
    const each = this.choice.agents?.map((one) => one.completion_tokens) ?? [written];
    return prompt + Math.max(...each) >= this.room.context;
  }

  /** The button of an error: what may help. */
  #wayOut(error, again) {
    const { edit, anew } = this.acts;
    if (error.code === FULL && !this.room.first) return button("New chat", anew, { class: "quiet" });
    // The same again is refused again.
    if (error.status === 400 || error.code === FULL) return button("Edit", edit, { class: "quiet" });
    return button("Try again", again, { class: "quiet" });
  }

  #remarks() {
    const out = [];
    if (this.state === "stopped") out.push("Stopped.");
    if (this.choice?.finish_reason === "length") out.push("Cut: there was no room for more tokens.");
    const why = THOUGHT_ENDS[this.choice?.thinking_stop_reason];
    if (why) out.push(why);
    if (!this.counts && this.state !== "failed") {
      out.push("There is no answer, so what follows does not build on this question.");
    }
    return out;
  }

  /** Numbers of this answer: tokens, and how fast they came after the first. */
  #facts() {
    const parts = [];
    if (this.usage && this.choice) {
      const { completion_tokens: written, completion_tokens_details: details } = this.usage;
      const { first_token_s: first, decode_s: decode } = this.choice.timings;
      parts.push(`${number(written)} tokens`);
      if (details.reasoning_tokens) parts.push(`${number(details.reasoning_tokens)} of thought`);
      if (written > 1 && decode > 0) parts.push(`${number((written - 1) / decode)} tokens/s`);
      parts.push(`first after ${seconds(first)}`);
    }
    const copies = this.answer ? copyButton(() => this.answer) : null;
    const again = this.state === "failed" ? null
      : button("Ask again", this.acts.again, { class: "quiet small again" });
    if (!parts.length && !copies && !again) return null;
    const told = parts.map((part) => make("span", {}, part));
    return make("footer", { class: "facts" }, ...told, copies, again);
  }

  #note(element) {
    if (element) this.notes.append(element);
  }
}

function questionView({ text, pictures }, edit) {
  const images = pictures.map((one) => make("img", { src: one.url, alt: one.name }));
  return make("article", { class: "question", "aria-label": "Question" },
    images.length ? make("div", { class: "shown" }, ...images) : null,
    text ? make("p", { dir: "auto" }, text) : null,
    button("Edit", edit, { class: "quiet small edit", "aria-label": "Edit this question" }));
}

/** A call that a model wrote; this page offers no tools and runs none. */
function callView({ function: { name, arguments: given } }) {
  return make("p", { class: "call" }, "It would call ", make("code", {}, `${name}(${given})`));
}

function titleOf(status) {
  if (status === undefined) return "This page failed"; // no answer of the server
  return TITLES[status] ?? (status < 500 ? "Refused" : "The server failed");
}

function errorView(error, wayOut) {
  const title = titleOf(error.status);
  const status = error.status ? ` · ${error.status}` : "";
  return make("div", { class: "error", role: "alert" },
    make("p", {}, make("b", {}, title), make("span", { class: "status" }, status)),
    make("p", { class: "said" }, error.message), wayOut);
}

function number(value) {
  return value.toLocaleString("en", { maximumFractionDigits: value < 100 ? 1 : 0 });
}

function seconds(value) {
  return value < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(1)} s`;
}
