// The server: JSON over fetch, and an answer as a stream of server-sent events. Knows nothing of the page.

export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

let key = "";
export function useKey(value) {
  key = value.trim();
}

const headers = (extra) => ({ ...extra, ...(key ? { Authorization: `Bearer ${key}` } : {}) });

async function send(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  let told = null;
  try {
    told = (await response.json()).error;
  } catch { /* not JSON: the status says it */ }
  if (response.status === 401) throw new Problem("This server wants an API key: see Options.", 401);
  const message = typeof told?.message === "string" ? told.message : `The server answered with status ${response.status}.`;
  throw new Problem(message, response.status);
}

export const getJson = async (path) => (await send(path, { headers: headers({}) })).json();

export const getBytes = async (path) => (await send(path, { headers: headers({}) })).arrayBuffer();

export async function postJson(path, body, signal) {
  const options = { method: "POST", body: JSON.stringify(body), headers: headers({ "Content-Type": "application/json" }), signal };
  return (await send(path, options)).json();
}

/** The chunks of one answer, as they come. Aborting the signal closes the connection: the server stops working. */
export async function* chunks(body, signal) {
  const options = {
    method: "POST",
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    headers: headers({ "Content-Type": "application/json" }),
    signal,
  };
  for await (const chunk of events(await send("v1/chat/completions", options))) {
    if (chunk.error) throw new Problem(String(chunk.error.message));
    yield chunk;
  }
}

/** What every stage is doing, a few times a second, until the signal is aborted. */
export async function* pipeline(signal) {
  yield* events(await send("v1/cascade/pipeline", { headers: headers({}), signal }));
}

/** The JSON of server-sent events, up to [DONE]. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  while (true) {
    const { value, done } = await reader.read();
    held += value ?? "";
    const whole = held.split("\n\n");
    held = whole.pop();
    for (const event of whole) {
      const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
    if (done) throw new Problem("The answer broke off.");
  }
}

const FORMATS = {
  csv: "text", txt: "text", bin: "bin", npy: "npy", npz: "npz", parquet: "parquet", aedat4: "aedat4", bag: "rosbag",
  arrow: "arrow", arrows: "arrow", ipc: "arrow", feather: "arrow",
};

const UPLOAD_BYTES = 1 << 20; // from here on a recording travels once, and is asked about by its id
const UPLOAD_AGE_S = 86400;
let keepsFiles = true;

/** A file as the server wants it. Videos it knows by their type, event formats by their name here or their content. */
export async function sendable(name, bytes, type) {
  const video = /^video\//.test(type);
  const format = video ? undefined : FORMATS[name.toLowerCase().split(".").pop()];
  const file_id = keepsFiles && bytes.byteLength >= UPLOAD_BYTES ? await upload(name, bytes) : null;
  if (file_id) return { file_id, ...(format ? { format } : {}) };
  return { url: await dataUrl(bytes, video ? type : "application/octet-stream"), ...(format ? { format } : {}) };
}

/** The id under which the server keeps it; null where it keeps no files of this page. */
async function upload(name, bytes) {
  const form = new FormData();
  form.append("purpose", "user_data");
  form.append("expires_after[anchor]", "created_at");
  form.append("expires_after[seconds]", String(UPLOAD_AGE_S));
  form.append("file", new Blob([bytes]), name);
  try {
    return (await (await send("v1/files", { method: "POST", body: form, headers: headers({}) })).json()).id;
  } catch (error) {
    keepsFiles = error.status !== 404 && error.status !== 403; // 403: not for a page that has come another way
    if (!keepsFiles) return null;
    if (error instanceof Problem && !error.status) throw new Problem("The upload broke off. The server is gone, or takes no file so large.");
    throw error;
  }
}

/** What was sent is not asked about any more. */
export function forget(recording) {
  if (!recording?.file_id) return;
  send(`v1/files/${encodeURIComponent(recording.file_id)}`, { method: "DELETE", headers: headers({}) }).catch(() => {});
}

function dataUrl(bytes, media) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Problem("The file cannot be read."));
    reader.readAsDataURL(new Blob([bytes], { type: media }));
  });
}
