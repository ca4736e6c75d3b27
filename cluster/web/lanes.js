// The lanes: a row per stage. While an answer streams, a tick for every token in the lane of who said it, at the time it
// came; once it is there, what each stage really did, from the trace.

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
    this.width = () => Math.max(280, place.clientWidth);
    addEventListener("resize", () => { if (this.place.isConnected && this.spans.length + this.ticks.length) this.draw(); });
  }

  clear() {
    this.spans = [];
    this.ticks = [];
    this.place.replaceChildren();
  }

  tick(by, atMs) {
    this.ticks.push({ by, atMs });
    this.draw();
  }

  /** timeline: [{stage, what, start_ms, end_ms}] */
  show(timeline) {
    this.spans = timeline;
    this.ticks = [];
    this.draw();
  }

  draw() {
    const names = [...VISION.filter((name) => this.spans.some(({ stage }) => stage === name)), ...this.levels];
    const width = this.width();
    const end = Math.max(1, ...this.spans.map((span) => span.end_ms), ...this.ticks.map((tick) => tick.atMs));
    const x = (ms) => LEFT + (Math.max(0, ms) / end) * (width - LEFT - RIGHT);
    const height = TOP + names.length * HIGH + 20;
    const told = this.spans.length ? "passes of every stage" : "tokens as they came";
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
