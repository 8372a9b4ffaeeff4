/** The server's own protocol: /v1/models, and /v1/chat/completions as server-sent events. */

const TOKEN = "musespark.token"; // of sessionStorage: gone with the tab

/** What the server said no with. `status`: of HTTP, 0 where there was no answer. */
export class ServerError extends Error {
  constructor(status, message, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export function keepToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

/** What the server says of its model. */
export async function model() {
  const response = await ask("v1/models", {});
  return (await response.json()).data[0];
}

/** The chunks of an answer as they come. Who aborts `signal` ends it on the server too. */
export async function* chat(body, signal) {
  const headers = { "Content-Type": "application/json" };
  const response = await ask("v1/chat/completions", {
    method: "POST", headers, body: JSON.stringify(body), signal,
  });
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(response.status, chunk.error.message, chunk.error.code);
    yield chunk;
  }
  throw new ServerError(0, "the connection ended before the answer did");
}

async function ask(path, options) {
  const headers = { ...options.headers };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ServerError(0, `${location.host} does not answer (${error.message})`);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  if (response.status === 401) { // the server says it in the words of programs
    return new ServerError(401, "The token is missing or wrong. Whoever started this server knows it.");
  }
  const text = await response.text();
  try {
    const { message, code } = JSON.parse(text).error;
    return new ServerError(response.status, message, code);
  } catch { // from something between here and the server, perhaps: what it says is all there is
    return new ServerError(response.status, text.slice(0, 300) || response.statusText);
  }
}

/** The data of server-sent events, each of one line, as this server writes them. */
async function* events(stream, signal) {
  let rest = "";
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (signal.aborted) throw error;
      throw new ServerError(0, `the connection broke (${error.message})`);
    });
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ")) yield line.slice(6);
    }
  }
}
