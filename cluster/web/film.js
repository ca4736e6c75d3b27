// The recording: its event frames, a scrubber over them, and what is known about it.

const get = (id) => document.getElementById(id);

export class Film {
  constructor() {
    this.frames = [];
    this.timer = 0;
    get("scrub").addEventListener("input", () => { this.pause(); this.draw(); });
    get("play").addEventListener("click", () => (this.timer ? this.pause() : this.play()));
  }

  show(told) {
    this.pause();
    this.frames = told.frames;
    const facts = told.facts;
    const share = Math.round(100 * facts.on_share);
    get("facts").textContent =
      `${facts.events.toLocaleString("en")} events in ${(facts.duration_us / 1000).toFixed(1)} ms on ` +
      `${facts.width} × ${facts.height} pixels, ${share} % of them ON` + (told.simulated ? "; simulated from video" : "");
    get("scrub").max = String(this.frames.length - 1);
    get("scrub").value = "0";
    get("film").hidden = false;
    this.draw();
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) this.play();
  }

  draw() {
    const number = Number(get("scrub").value);
    const frame = this.frames[number];
    const span = `${(frame.start_us / 1000).toFixed(1)} to ${(frame.end_us / 1000).toFixed(1)} ms`;
    get("frame").src = `data:image/png;base64,${frame.png}`;
    get("frame").alt = `Frame ${number + 1} of ${this.frames.length}: ${frame.events} events, ${span}`;
    get("when").textContent = span;
    get("scrub").setAttribute("aria-valuetext", span);
  }

  play() {
    const step = () => {
      const scrub = get("scrub");
      scrub.value = String((Number(scrub.value) + 1) % this.frames.length);
      this.draw();
    };
    this.timer = setInterval(step, 140);
    this.button("❚❚", true);
  }

  pause() {
    clearInterval(this.timer);
    this.timer = 0;
    this.button("▶", false);
  }

  button(sign, pressed) {
    get("play").textContent = sign;
    get("play").setAttribute("aria-pressed", String(pressed));
  }
}
