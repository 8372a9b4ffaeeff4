/** The page: what is asked, with what options, and who answers. The conversation is kept here alone. */

import { lastPictures, picturesOf, Tray } from "./pictures.js";
import { firstMessages, sampling, settingsDialog } from "./settings.js";
import { Turn } from "./turn.js";
import * as wire from "./wire.js";

const by = (id) => document.getElementById(id);
const message = by("message");
const tray = new Tray(by("tray"), ready);
const turns = [];
let served = null; // what the server says of its model
let running = null; // {turn, controller}
let editing = null; // {turn, text, pictures}: whose question is written anew, and what stood there
let awaited = false; // was sent before its pictures were read or the model was known: goes with them
const early = []; // files that came before the model was known

// ---- the model ----------------------------------------------------------------------------------

async function connect() {
  try {
    served = await wire.model();
  } catch (error) {
    if (error.status === 401) askForToken();
    else complain(`${error.message}`);
    return;
  }
  const words = served.images ? "It reads text and looks at pictures." : "It reads text.";
  by("model").textContent = served.id;
  by("about").textContent = `${served.id} on ${location.host}, with room for `
    + `${served.context.toLocaleString("en")} tokens. ${words} Nothing is stored.`;
  by("add-picture").hidden = !served.images;
  showEfforts();
  complain("");
  ready();
  await addPictures(early.splice(0));
  if (awaited) send();
}

function askForToken(said = "") {
  const dialog = by("token-dialog");
  by("token-error").hidden = !said;
  by("token-error").textContent = said;
  if (!dialog.open) dialog.showModal();
  by("token").focus();
}

by("token-dialog").addEventListener("cancel", (event) => event.preventDefault());
by("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  wire.keepToken(by("token").value);
  try {
    await wire.model();
  } catch (error) {
    askForToken(error.message);
    return;
  }
  by("token").value = "";
  by("token-dialog").close();
  await connect();
  message.focus();
});

// ---- options ------------------------------------------------------------------------------------

function efforts() {
  return served?.reasoning_efforts ?? [];
}

function showEfforts() {
  const range = by("effort");
  by("effort-field").hidden = !efforts().length;
  range.max = String(Math.max(0, efforts().length - 1));
  range.value = String(Math.max(0, efforts().indexOf("medium")));
  showOptions();
}

function showOptions() {
  const many = Number(by("agents").value) > 1;
  by("aggregate-field").hidden = !many;
  // Agents that do not think are refused: their slider begins after "none".
  by("effort").min = many && efforts()[0] === "none" ? "1" : "0";
  const name = efforts()[Number(by("effort").value)] ?? "";
  by("effort-name").textContent = name;
  by("effort").setAttribute("aria-valuetext", name);
}

by("effort").addEventListener("input", showOptions);
by("agents").addEventListener("change", showOptions);
settingsDialog(() => ({ model: served?.id, messages: messagesOf(turns.filter((turn) => turn.counts)) }));

/** Turns as messages; `questions`: theirs, perhaps with fewer pictures. */
function messagesOf(those, questions = those.map((turn) => turn.question)) {
  return [...firstMessages(), ...those.flatMap((turn, i) => [asked(questions[i]), answered(turn)])];
}

/** The request for the last of `questions`, the others being those of `before`. */
function bodyFor(questions, before) {
  const body = {
    model: served.id,
    messages: [...messagesOf(before, questions), asked(questions.at(-1))],
    ...sampling(),
    stream: true,
    stream_options: { include_usage: true },
    visual_trace: true,
  };
  if (efforts().length) body.reasoning_effort = efforts()[Number(by("effort").value)];
  const agents = Number(by("agents").value);
  if (agents > 1) {
    Object.assign(body, { mode: "contemplating", n_agents: agents, aggregate: by("aggregate").value });
  }
  return body;
}

function asked({ text, pictures }) {
  if (!pictures.length) return { role: "user", content: text || "(a picture)" };
  const parts = pictures.map((one) => ({ type: "image_url", image_url: { url: one.url } }));
  return { role: "user", content: text ? [...parts, { type: "text", text }] : parts };
}

function answered({ answer, reasoning }) {
  const thought = reasoning ? { reasoning_content: reasoning } : {};
  return { role: "assistant", content: answer, ...thought };
}

// ---- asking -------------------------------------------------------------------------------------

function send() {
  const text = message.value.trim();
  awaited = !running && (!served || tray.reading > 0);
  if (awaited) say(served ? "Waiting for the picture" : "Waiting for the server");
  if (awaited || running || (!text && !tray.pictures.length)) return;
  const question = { text, pictures: tray.take() };
  if (editing) forgetFrom(editing.turn);
  editing = null;
  write("");
  ask(question);
}

/** Takes a turn and those after it out of the conversation. */
function forgetFrom(turn) {
  for (const gone of turns.splice(turns.indexOf(turn))) gone.element.remove();
}

function askAgain(turn) {
  if (running) return;
  stopEditing();
  forgetFrom(turn);
  ask(turn.question);
}

/** Its question is to be written anew; it and what follows leave when that is sent. */
function edit(turn) {
  if (running) return;
  stopEditing();
  editing = { turn, text: message.value, pictures: tray.take() };
  write(turn.question.text, turn.question.pictures);
  message.focus();
}

function stopEditing() {
  if (!editing) return;
  const { text, pictures } = editing;
  editing = null;
  write(text, pictures);
}

function write(text, pictures = []) {
  awaited = false;
  message.value = text;
  tray.put(pictures);
  fitMessage();
  const first = editing ? turns.indexOf(editing.turn) : turns.length;
  turns.forEach((turn, i) => turn.element.classList.toggle("leaves", i >= first));
  by("editing").hidden = !editing;
}

async function ask(question) {
  const before = turns.filter((turn) => turn.counts);
  const all = [...before.map((turn) => turn.question), question];
  const questions = lastPictures(all, served.most_images);
  const [had, sent] = [all, questions].map((some) => some.flatMap((one) => one.pictures).length);
  const most = `only the last ${served.most_images} pictures of a chat are sent`;
  complain(had > sent ? `The model no longer sees all pictures: ${most}.` : "");
  const urls = questions.flatMap((one) => one.pictures.map(({ url }) => url));
  const acts = { edit: () => edit(turn), again: () => askAgain(turn), anew: startAnew };
  const turn = new Turn(question, urls, acts, { first: !before.length, context: served.context });
  const controller = new AbortController();
  turns.push(turn);
  by("talk").append(turn.element);
  goOn({ turn, controller });
  toTheEnd();
  try {
    for await (const chunk of wire.chat(bodyFor(questions, before), controller.signal)) turn.take(chunk);
    turn.end("done");
    say(turn.answer || "There is no answer.");
  } catch (error) {
    failed(turn, error, controller.signal.aborted);
  }
  if (running?.turn !== turn) return;
  goOn(null);
  if (atEnd) toTheEnd();
}

function failed(turn, error, aborted) {
  if (aborted) {
    turn.end("stopped");
    if (turns.includes(turn)) say("Stopped.");
    return;
  }
  turn.end("failed", error, () => {
    if (running) return;
    turns.splice(turns.indexOf(turn), 1);
    turn.element.remove();
    ask(turn.question);
  });
  if (error.status === 401) askForToken(error.message);
}

function goOn(now) {
  running = now;
  by("welcome").hidden = turns.length > 0;
  by("send").hidden = running !== null;
  by("stop").hidden = running === null;
  document.body.classList.toggle("busy", running !== null);
  if (running) say("Thinking");
  ready();
}

function stop() {
  running?.controller.abort();
}

function startAnew() {
  stop();
  stopEditing();
  awaited = false;
  turns.length = 0;
  by("talk").replaceChildren(by("welcome"));
  goOn(null);
  say("A new chat");
  message.focus();
}

// ---- what is shown around it --------------------------------------------------------------------

function ready() {
  by("send").disabled = !served || (!message.value.trim() && !tray.pictures.length);
}

function say(text) {
  by("status").textContent = text;
}

function complain(text) {
  by("notice").hidden = !text;
  by("notice").textContent = text;
}

function fitMessage() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
}

function toTheEnd() {
  window.scrollTo({ top: document.documentElement.scrollHeight });
}

// The end stays in sight while an answer grows, unless its reader went elsewhere.
let atEnd = true;
addEventListener("scroll", () => {
  const { scrollHeight, scrollTop, clientHeight } = document.documentElement;
  atEnd = scrollHeight - scrollTop - clientHeight < 60;
}, { passive: true });
new ResizeObserver(() => { if (running && atEnd) toTheEnd(); }).observe(by("talk"));

// ---- pictures -----------------------------------------------------------------------------------

async function addPictures(files) {
  if (!files.length) return;
  if (!served) {
    early.push(...files);
    return;
  }
  complain("");
  if (!served.images) {
    complain("This model reads text alone.");
    awaited = false;
    return;
  }
  const { others, broken } = await tray.add(files);
  const said = others.length ? [`No picture: ${others.join(", ")}.`] : [];
  if (broken.length) said.push(`Damaged, or of a kind that is not read here: ${broken.join(", ")}.`);
  if (said.length) complain(said.join(" "));
  message.focus();
  if (!awaited) return;
  if (said.length) awaited = false; // without them it may be another question
  else send();
}

by("add-picture").addEventListener("click", () => by("picture-files").click());
by("picture-files").addEventListener("change", async (event) => {
  await addPictures([...event.target.files]);
  event.target.value = ""; // the same file may be chosen again
});
document.addEventListener("paste", (event) => {
  const files = picturesOf(event.clipboardData);
  if (!files.length) return;
  event.preventDefault();
  addPictures(files);
});
document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  by("dropping").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) by("dropping").hidden = true;
});
document.addEventListener("drop", (event) => {
  by("dropping").hidden = true;
  const files = picturesOf(event.dataTransfer);
  if (!files.length) return;
  event.preventDefault();
  addPictures(files);
});

// ---- keys and buttons ---------------------------------------------------------------------------

message.addEventListener("input", () => {
  awaited = false; // there is more to come
  fitMessage();
  ready();
});
message.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (running) stop();
  else if (awaited) awaited = false;
  else stopEditing();
});
by("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
by("stop").addEventListener("click", () => {
  stop();
  message.focus();
});
by("stop-editing").addEventListener("click", () => {
  stopEditing();
  message.focus();
});
by("new-chat").addEventListener("click", startAnew);
addEventListener("beforeunload", (event) => { // the browser asks whether it may go
  if (turns.length || message.value.trim()) event.preventDefault();
});

connect();
