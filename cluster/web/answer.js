// One answer on the page: a mark-up of its tokens that grows while it streams. All text goes in as textContent.

const make = (tag, name, text) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
};

/** levels: from light to target. say(text): where a token's story is told. */
export class AnswerView {
  constructor(title, levels, say) {
    this.levels = levels;
    this.say = say;
    this.tokens = [];
    this.node = make("article", "one");
    this.node.append(make("h3", "", title));
    this.text = make("p", "text");
    this.text.setAttribute("role", "group");
    this.text.setAttribute("aria-label", `${title}: arrow keys walk through the tokens`);
    this.counters = make("dl", "counters");
    this.note = make("p", "hint");
    this.caret = make("span", "caret");
    this.text.append(this.caret);
    this.node.append(this.text, this.counters, this.note);
    this.text.addEventListener("keydown", (event) => this.walk(event));
    for (const kind of ["pointerover", "focusin"]) this.text.addEventListener(kind, (event) => this.tell(event.target));
  }

  /** Tokens of one round: pieces, and spans [{start, end, by, accepted_by}] that count from `first`. */
  add(ids, pieces, spans, first) {
    for (const span of spans) {
      for (let at = span.start; at < span.end; at++) {
        this.tokens.push({ id: ids[at - first], piece: pieces[at - first] ?? "", by: span.by, accepted: span.accepted_by });
        this.caret.before(this.mark(this.tokens.length - 1));
      }
    }
  }

  mark(number) {
    const token = this.tokens[number];
    const level = this.levels.indexOf(token.by);
    const node = make("span", `token l${level}`);
    node.dataset.number = String(number);
    node.tabIndex = number ? -1 : 0;
    for (const name of token.accepted) {
      const dot = make("i", `dot l${this.levels.indexOf(name)} at${this.levels.indexOf(name)}`);
      dot.setAttribute("aria-hidden", "true");
      node.append(dot);
    }
    node.append(token.piece === "" ? make("span", "silent", "⏎") : token.piece);
    node.setAttribute("aria-label", `${token.piece.trim() || "end"}, by ${token.by}`);
    return node;
  }

  /** The whole answer has the last word: what streamed is replaced by it. */
  finish(cascade, metrics) {
    this.caret.remove();
    for (const node of this.text.querySelectorAll(".token")) node.remove();
    this.tokens = [];
    this.text.append(this.caret);
    this.add(cascade.token_ids, cascade.pieces, cascade.spans, 0);
    this.caret.remove();
    this.refuse(cascade.rejections ?? []);
    this.count(cascade, metrics);
    this.note.textContent = (cascade.notes ?? []).join("; ");
  }

  refuse(rejections) {
    const at = [...this.text.querySelectorAll(".token")];
    for (const { position, by, masks, text } of rejections) {
      const level = Math.log2(masks[0] & -masks[0]);
      const ghost = make("del", `ghost l${level}`, text === "" ? "⏎" : text);
      ghost.dataset.story = `Refused draft “${text.trim() || "end"}”: said by ${this.levels[level]}, refused by ${this.levels[by]}`;
      if (at[position]) at[position].before(ghost);
      else this.text.append(ghost);
    }
  }

  count(cascade, metrics) {
    const tokens = cascade.token_ids.length;
    const figures = [
      ["tokens", tokens],
      ["first token", `${metrics.time_to_first_token_ms.toFixed(0)} ms`],
      ["all of it", `${(metrics.time_to_first_token_ms + metrics.generation_time_ms).toFixed(0)} ms`],
      ["tokens/s", metrics.tokens_per_second.toFixed(0)],
      [`passes of ${this.levels.at(-1)}`, cascade.target_passes],
    ];
    for (const edge of cascade.edges ?? []) {
      const drafted = edge.spec_decode_num_draft_tokens;
      if (drafted) figures.push([`${edge.edge.replace("-", " → ")} accepted`, `${edge.spec_decode_num_accepted_tokens} of ${drafted}`]);
    }
    if (cascade.gate) figures.push(["gate", `${cascade.gate.decision}, cosine ${cascade.gate.cosine}`]);
    this.counters.replaceChildren();
    for (const [name, value] of figures) {
      const pair = make("div");
      pair.append(make("dt", "", name), make("dd", "", String(value)));
      this.counters.append(pair);
    }
  }

  stopped(why) {
    this.caret.remove();
    this.note.textContent = why;
  }

  tell(node) {
    const ghost = node.closest(".ghost");
    if (ghost) return this.say(ghost.dataset.story);
    const token = node.closest(".token");
    if (!token) return undefined;
    const { id, piece, by, accepted } = this.tokens[Number(token.dataset.number)];
    const then = accepted.length ? `, accepted by ${accepted.join(" and ")}` : "";
    return this.say(`Token ${Number(token.dataset.number) + 1} “${piece.trim() || "end"}” (id ${id}): said by ${by}${then}`);
  }

  walk(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    const from = event.target.closest(".token");
    if (!step || !from) return;
    const all = [...this.text.querySelectorAll(".token")];
    const to = all[Math.min(all.length - 1, Math.max(0, Number(from.dataset.number) + step))];
    event.preventDefault();
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }
}
