/** What holds for every question until the page is closed, and the chat as a file. */

const by = (id) => document.getElementById(id);

/** What the model is told before the conversation. */
export function firstMessages() {
  const content = by("system").value.trim();
  return content ? [{ role: "system", content }] : [];
}

/** How freely it writes: the model's own way where nothing is said. */
export function sampling() {
  const { value } = by("temperature");
  return value === "" ? {} : { temperature: Number(value) };
}

/** `chat`: gives {model, messages} as they would be sent, to be saved. */
export function settingsDialog(chat) {
  const dialog = by("settings-dialog");
  const saves = { "save-markdown": ["md", asMarkdown], "save-json": ["json", asJson] };
  by("settings").addEventListener("click", () => {
    const empty = !chat().messages.some((one) => one.role === "assistant");
    for (const id of Object.keys(saves)) by(id).disabled = empty;
    dialog.showModal();
  });
  by("settings-form").addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close();
  });
  dialog.addEventListener("close", () => {
    const set = firstMessages().length > 0 || by("temperature").value !== "";
    by("settings").classList.toggle("set", set);
  });
  for (const [id, [kind, write]] of Object.entries(saves)) {
    by(id).addEventListener("click", () => save(`chat.${kind}`, write(chat())));
  }
}

/** As /v1/chat/completions takes it. */
function asJson(chat) {
  return `${JSON.stringify(chat, null, 2)}\n`;
}

const TITLES = { system: "System prompt", user: "Question", assistant: "Answer" };

function asMarkdown({ model, messages }) {
  const parts = messages.map(({ role, content, reasoning_content: thought }) => {
    const quoted = thought ? `${thought.trim().replace(/^/gm, "> ")}\n\n` : "";
    return `## ${TITLES[role]}\n\n${quoted}${textOf(content).trim()}\n`;
  });
  return [`# ${model}\n`, ...parts].join("\n");
}

function textOf(content) {
  if (typeof content === "string") return content;
  return content.map((part) => part.text ?? "(a picture)").join("\n\n");
}

function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text]));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser has it by then
}
