// The page: choose a recording, ask, watch. Parts: api.js (the server), film.js, answer.js, lanes.js, stages.js.

import { Problem, chunks, forget, getBytes, getJson, pipeline, postJson, sendable, useKey } from "./api.js";
import { AnswerView } from "./answer.js";
import { Film } from "./film.js";
import { Lanes } from "./lanes.js";
import { StageTable } from "./stages.js";

const get = (id) => document.getElementById(id);
const film = new Film();
let model = ""; // what the server calls it
let levels = [];
let lanes = null;
let stages = null;
let recording = null; // {url, format}, the url with all its data, or {file_id, format}
let asked = null; // the recording that is being asked about
let running = null; // an AbortController

function complain(error) {
  if (error.name === "AbortError") return;
  get("problem").textContent = error instanceof Problem ? error.message : `The page failed: ${error.message}`;
  get("problem").hidden = false;
}

const calm = () => { get("problem").hidden = true; };
const say = (text) => { get("told").textContent = text; };

// -- the recording ---------------------------------------------------------------------------------------------------

let newest = 0; // of the recordings asked for: an earlier one that comes late is not shown

async function load(title, name, bytes, type = "", button = null) {
  const mine = ++newest;
  calm();
  get("drop").setAttribute("aria-busy", "true");
  let unused = null;
  try {
    const sent = unused = await sendable(name, await bytes, type);
    const told = await postJson("v1/cascade/frames", { recording: sent });
    if (mine !== newest) return;
    unused = recording;
    recording = sent;
    for (const other of get("samples").children) other.setAttribute("aria-pressed", String(other === button));
    film.show(told);
    say(`${title} is loaded.`);
  } catch (error) {
    if (mine === newest) complain(error instanceof Problem ? new Problem(`${title} was not taken. ${error.message}`) : error);
  } finally {
    if (unused !== asked) forget(unused); // what came before, or what is not to be shown
    get("drop").removeAttribute("aria-busy");
  }
}

function offer(samples) {
  for (const { name, title } of samples) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = title;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      load(title, "sample.arrows", getBytes(`v1/cascade/samples/${encodeURIComponent(name)}`), "", button);
    });
    get("samples").append(button);
  }
  get("samples").firstElementChild?.click();
}

function take(file) {
  load(file.name, file.name, file.arrayBuffer(), file.type);
}

get("file").addEventListener("change", (event) => {
  if (event.target.files[0]) take(event.target.files[0]);
  event.target.value = "";
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    get("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
}

// -- the question ----------------------------------------------------------------------------------------------------

/** The question as it stands on the page now. */
function body() {
  return {
    model,
    messages: [{
      role: "user",
      content: [{ type: "events_url", events_url: recording }, { type: "text", text: get("question").value }],
    }],
    max_tokens: Number(get("max_tokens").value),
    temperature: Number(get("temperature").value),
    seed: Number(get("seed").value),
  };
}

/** Ask once and show it as it comes. Gives {cascade, ms}: what the server told, and this page's own time. */
async function ask(title, question, speculate, signal, ticks) {
  const view = new AnswerView(title, levels, say);
  get("answers").append(view.node);
  const started = performance.now();
  let first = 0, last = null;
  try {
    for await (const chunk of chunks({ ...question, cascade: { speculate } }, signal)) {
      const told = chunk.cascade;
      if (told?.token_ids && !chunk.metrics) {
        view.add(told.token_ids, told.pieces, told.spans, first);
        first += told.token_ids.length;
        if (ticks) for (const { by, start, end } of told.spans) for (let at = start; at < end; at++) lanes.tick(by, performance.now() - started);
      }
      if (chunk.metrics) last = chunk;
    }
  } catch (error) {
    view.stopped(error.name === "AbortError" ? "Stopped." : "");
    throw error;
  }
  if (!last) throw new Problem("The server did not tell the whole answer.");
  view.finish(last.cascade, last.metrics);
  return { cascade: last.cascade, ms: performance.now() - started };
}

function verdict(cascade, alone) {
  const target = levels.at(-1);
  const same = cascade.cascade.token_ids.join() === alone.cascade.token_ids.join();
  const count = cascade.cascade.token_ids.length;
  get("verdict").textContent = same
    ? `Identical: all ${count} tokens, ${(alone.ms / cascade.ms).toFixed(1)}× as fast as ${target} alone ` +
      `(${cascade.ms.toFixed(0)} ms and ${alone.ms.toFixed(0)} ms, as this page saw them, once each).`
    : `Different: the token ids are not the same.`;
  get("verdict").classList.toggle("bad", !same);
  get("verdict").hidden = false;
}

async function run() {
  calm();
  if (!recording) {
    complain(new Problem("Choose a recording first."));
    return;
  }
  running = new AbortController();
  busy(true);
  get("answers").replaceChildren();
  get("verdict").hidden = true;
  say("");
  lanes.clear();
  stages.clear();
  const rest = watch();
  get("trace").hidden = true;
  const both = get("compare").checked, question = body(); // both are asked the same, whatever is chosen meanwhile
  asked = recording;
  try {
    const cascade = await ask("The cascade", question, true, running.signal, true);
    await rest();
    lanes.show(cascade.cascade.timeline);
    offerTrace(cascade.cascade.request_id);
    if (both) verdict(cascade, await ask(`${levels.at(-1)} alone`, question, false, running.signal, false));
  } catch (error) {
    complain(error);
  } finally {
    if (asked !== recording) forget(asked);
    asked = null;
    rest();
    busy(false);
  }
}

/** Show what the stages are doing while an answer is made. Gives what ends it: they are shown once more, at rest. Where
 *  nobody tells, the answer comes all the same. */
function watch() {
  const asking = new AbortController(), started = performance.now();
  let last = false;
  const shown = (async () => {
    try {
      for await (const told of pipeline(asking.signal)) {
        stages.show(told);
        if (last) return;
        lanes.busy(told, performance.now() - started);
      }
    } catch { /* nobody to ask, or asked no longer */ }
  })();
  return async () => {
    last = true;
    const late = setTimeout(() => asking.abort(), 1000);
    await shown;
    clearTimeout(late);
    asking.abort();
    stages.rest();
  };
}

function busy(is) {
  get("go").disabled = is;
  get("stop").disabled = !is;
  get("answers").setAttribute("aria-busy", String(is));
  if (!is) running = null;
}

async function offerTrace(id) {
  try {
    const trace = await getJson(`v1/cascade/requests/${encodeURIComponent(id)}/trace`);
    URL.revokeObjectURL(get("trace").href);
    get("trace").href = URL.createObjectURL(new Blob([JSON.stringify(trace)], { type: "application/json" }));
    get("trace").hidden = false;
  } catch { /* the lanes are there all the same */ }
}

get("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) run();
});
get("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    get("ask").requestSubmit();
  }
});
get("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
get("refused").addEventListener("change", (event) => get("answers").classList.toggle("refused", event.target.checked));

// -- the server ------------------------------------------------------------------------------------------------------

function showLegend() {
  const legend = get("legend");
  legend.replaceChildren("said by ");
  levels.forEach((name, level) => {
    const sample = document.createElement("span");
    sample.className = `token l${level}`;
    sample.textContent = name;
    legend.append(sample, " ");
  });
  const dot = document.createElement("i");
  dot.className = "dot";
  legend.append(dot, "a dot above a token: that stage accepted it");
  legend.hidden = false;
}

async function connect() {
  calm();
  try {
    const { data: [served] } = await getJson("v1/models");
    model = served.id;
    levels = served.cascade.levels;
    get("server").textContent = `${model}: ${levels.join(" → ")}, ${served.cascade.mode}`;
    get("target").textContent = levels.at(-1);
    lanes = new Lanes(get("lanes"), levels);
    stages = new StageTable(get("stages"), levels);
    showLegend();
    get("samples").replaceChildren();
    offer((await getJson("v1/cascade/samples")).data);
  } catch (error) {
    get("server").textContent = error.status === 401 ? "An API key is needed." : "Not connected.";
    complain(error);
    if (error.status === 401) {
      document.querySelector("details").open = true;
      get("key").focus();
    }
  }
}

get("key").addEventListener("change", (event) => {
  useKey(event.target.value);
  connect();
});
connect();
