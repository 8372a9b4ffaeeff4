/** Agents that answer the same question, side by side. */

import { make, onceAFrame } from "./dom.js";
import { renderMarkdown } from "./markdown.js";
import { Thought } from "./thought.js";

const ENDS = {
  consensus: "not counted: decided before",
  weak: "stopped: not confident",
  deadline: "stopped: out of time",
  cancelled: "stopped",
  length: "cut: no tokens left",
};

class AgentCard {
  constructor(index) {
    this.text = "";
    this.thought = new Thought();
    this.state = make("span", { class: "agent-state" }, "thinking");
    this.body = make("div", { class: "agent-text prose", tabindex: "0" });
    this.element = make("section", { class: "agent", "aria-label": `Agent ${index + 1}` },
      make("header", {}, make("b", {}, `Agent ${index + 1}`), this.state),
      this.thought.element, this.body);
    this.shows = onceAFrame(() => this.#show());
  }

  add(channel, text) {
    if (channel === "reasoning") {
      this.thought.add(text);
    } else if (channel === "content") {
      this.thought.close();
      this.state.textContent = "answering";
      this.text += text;
      this.shows.soon();
    }
  }

  close(state, kind) {
    this.thought.close();
    this.shows.now();
    this.state.textContent = state;
    this.element.classList.add(kind);
  }

  /** The end stays in sight, for a card is no longer than a screen. */
  #show() {
    renderMarkdown(this.body, this.text);
    this.body.scrollTop = this.body.scrollHeight;
  }
}

export class Board {
  constructor() {
    this.cards = new Map(); // "round/index" -> AgentCard
    this.rounds = make("div", { class: "rounds" });
    this.summary = make("p", { class: "votes" });
    this.element = make("section", { class: "board", "aria-label": "Agents" },
      this.rounds, this.summary);
  }

  /** A piece of what an agent writes. */
  add({ round, index, channel, text }) {
    this.#card(round, index).add(channel, text);
  }

  /** All have ended; `choice` is the end of the answer. */
  end(choice) {
    const last = Math.max(...choice.agents.map((one) => one.round));
    for (const one of choice.agents) {
      const leads = one.round === last && one.key !== null && one.key === choice.answer;
      const told = one.key !== null ? `${percent(one.confidence)} confident` : ENDS[one.stop_reason];
      this.#card(one.round, one.index).close(told ?? "no answer", leads ? "leads" : "ended");
    }
    const those = choice.agents.filter((one) => one.round === last);
    const votes = those.filter((one) => one.key !== null);
    const agree = votes.filter((one) => one.key === choice.answer).length;
    const early = choice.stop_reason === "consensus";
    this.summary.textContent = votesText(agree, votes.length, early ? those.length : 0);
  }

  /** Stopped, or failed: what is there stays. */
  halt() {
    for (const card of this.cards.values()) card.close("stopped", "ended");
  }

  #card(round, index) {
    const key = `${round}/${index}`;
    if (!this.cards.has(key)) {
      const card = new AgentCard(index);
      this.cards.set(key, card);
      this.#row(round).append(card.element);
    }
    return this.cards.get(key);
  }

  #row(round) {
    while (this.rounds.children.length <= round) {
      const number = this.rounds.children.length;
      const cards = make("div", { class: "agents", tabindex: "0", role: "group",
        "aria-label": number ? `Round ${number + 1}` : "Agents, side by side" });
      const title = number ? make("h2", {}, `Round ${number + 1}`) : null;
      this.rounds.append(make("div", {}, title, cards));
    }
    return this.rounds.children[round].lastChild;
  }
}

/** `all`: how many would have answered, had it not been decided before; else 0. */
function votesText(agree, count, all) {
  if (!count) return "No agent came to an answer; this is the most confident one, as far as it came.";
  if (count > 1 && agree === 1) return `No two of ${count} answers agree; this is the most confident.`;
  if (all > count) return `Decided after ${count} of ${all} answers: ${agree} agree.`;
  return `${agree} of ${count} answers agree.`;
}

function percent(share) {
  return `${Math.round(100 * share)}%`;
}
