// The lanes: a row per stage. While an answer streams, how busy each stage is, as high as it is busy, and a tick for every
// token in the lane of who said it, at the time it came; once it is there, what each stage really did, from the trace.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 74, RIGHT = 12, HIGH = 24, TOP = 6;
const VISION = ["encoder", "adapter"];

const make = (tag, attributes, text) => {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  if (text !== undefined) node.textContent = text;
  return node;
};

export class Lanes {
  constructor(place, levels) {
    this.place = place;
    this.levels = levels;
    this.spans = [];
    this.ticks = [];
    this.loads = [];
    this.width = () => Math.max(280, place.clientWidth);
    addEventListener("resize", () => { if (this.place.isConnected && this.spans.length + this.ticks.length + this.loads.length) this.draw(); });
  }

  clear() {
    this.spans = [];
    this.ticks = [];
    this.loads = [];
    this.before = 0;
    this.place.replaceChildren();
  }

  tick(by, atMs) {
    this.ticks.push({ by, atMs });
    this.draw();
  }

  /** told: one event of /v1/cascade/pipeline. */
  busy(told, atMs) {
    for (const { name, busy } of told.stages) if (busy) this.loads.push({ name, busy, from: this.before, to: atMs });
    this.before = atMs;
    this.draw();
  }

  /** timeline: [{stage, what, start_ms, end_ms}] */
  show(timeline) {
    this.spans = timeline;
    this.ticks = [];
    this.loads = [];
    this.draw();
  }

  draw() {
    const names = [...VISION.filter((name) => this.spans.some(({ stage }) => stage === name)), ...this.levels];
    const width = this.width();
    const end = Math.max(1, ...this.spans.map((span) => span.end_ms), ...this.ticks.map((tick) => tick.atMs), ...this.loads.map((load) => load.to));
    const x = (ms) => LEFT + (Math.max(0, ms) / end) * (width - LEFT - RIGHT);
    const height = TOP + names.length * HIGH + 20;
    const told = this.spans.length ? "passes of every stage" : "how busy each stage is, and tokens as they came";
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `Timeline: ${told}` });
    names.forEach((name, row) => {
      const y = TOP + row * HIGH, level = this.levels.indexOf(name);
      const kind = level < 0 ? name : `l${level}`;
      svg.append(make("text", { x: LEFT - 8, y: y + HIGH / 2 + 4, class: "name" }, name));
      svg.append(make("rect", { x: LEFT, y: y + 3, width: width - LEFT - RIGHT, height: HIGH - 6, class: "bed" }));
      for (const span of this.spans.filter(({ stage }) => stage === name)) {
        const bar = make("rect", {
          x: x(span.start_ms), y: y + 4, width: Math.max(1, x(span.end_ms) - x(span.start_ms) - 0.5), height: HIGH - 8,
          class: `bar ${kind} ${span.what === "prefill" ? "prefill" : ""}`,
        });
        bar.append(make("title", {}, `${name}: ${span.what}, ${(span.end_ms - span.start_ms).toFixed(1)} ms from ${span.start_ms.toFixed(1)} ms`));
        svg.append(bar);
      }
      for (const load of this.loads.filter((each) => each.name === name)) {
        const high = (HIGH - 6) * load.busy;
        const bar = make("rect", {
          x: x(load.from), y: y + HIGH - 3 - high, width: Math.max(1, x(load.to) - x(load.from) - 1), height: high, class: `load ${kind}`,
        });
        bar.append(make("title", {}, `${name}: busy ${Math.round(100 * load.busy)} %`));
        svg.append(bar);
      }
      for (const { atMs } of this.ticks.filter(({ by }) => by === name)) {
        svg.append(make("rect", { x: x(atMs) - 1, y: y + 5, width: 2.5, height: HIGH - 10, class: `bar ${kind}` }));
      }
    });
    for (const part of width < 500 ? [0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1]) {
      const place = part === 0 ? "start" : part === 1 ? "end" : "middle";
      svg.append(make("text", { x: x(part * end), y: height - 4, class: "axis", "text-anchor": place }, `${(part * end).toFixed(0)} ms`));
    }
    this.place.replaceChildren(svg);
  }
}
