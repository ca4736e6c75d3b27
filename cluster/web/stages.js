// The stages as a table: what each is doing now, and what it has done since the question was asked, for everybody.

const make = (tag, name, text) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
};

const HEADS = ["stage", "now", "passes", "tokens fed", "drafts kept"];

export class StageTable {
  constructor(place, levels) {
    this.place = place;
    this.levels = levels;
    this.clear();
  }

  clear() {
    this.first = null;
    this.place.replaceChildren();
  }

  /** told: one event of /v1/cascade/pipeline. */
  show(told) {
    this.first ??= new Map(told.stages.map((stage) => [stage.name, stage]));
    const table = make("table");
    const head = make("tr");
    head.append(...HEADS.map((text) => make("th", "", text)));
    table.append(head, ...told.stages.map((stage) => this.row(stage)));
    this.place.replaceChildren(table);
  }

  row(stage) {
    const row = make("tr");
    const name = make("th");
    name.scope = "row";
    name.append(make("i", `swatch l${this.levels.indexOf(stage.name)}`), stage.name);
    row.append(name);
    if (!stage.alive) {
      const gone = make("td", "gone", "does not answer; the others go on");
      gone.colSpan = HEADS.length - 1;
      row.append(gone);
      return row;
    }
    const first = this.first.get(stage.name);
    const since = (count) => stage[count] - (first?.alive ? first[count] : 0);
    const share = stage.busy === null ? "" : ` ${Math.round(100 * stage.busy)} %`;
    const state = stage.busy ? `busy${share}` : "idle";
    const drafted = since("drafted");
    row.append(
      make("td", stage.busy ? "busy" : "", state),
      make("td", "", String(since("passes"))),
      make("td", "", String(since("tokens"))),
      make("td", "", drafted ? `${since("accepted")} of ${drafted}` : "–"),
    );
    return row;
  }

  /** Nobody is asking any more: the counts stay, the states do not. */
  rest() {
    for (const cell of this.place.querySelectorAll("td.busy")) {
      cell.textContent = "idle";
      cell.className = "";
    }
  }
}
