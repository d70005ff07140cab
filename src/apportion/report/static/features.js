// The browser of features: a list that is searched, sorted and paged, and one feature in full.

const PAGE = 40;

class Features {
  constructor() {
    this.sae = byId("feature-sae");
    this.search = byId("feature-search");
    this.sort = byId("feature-sort");
    this.list = byId("feature-list");
    this.texts = new Map();
    let waiting;
    this.search.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.find(), 120);
    });
    byId("feature-controls").addEventListener("submit", (event) => event.preventDefault());
    this.sort.addEventListener("change", () => this.find());
    this.sae.addEventListener("change", () => this.open());
    byId("feature-previous").addEventListener("click", () => this.turn(-1));
    byId("feature-next").addEventListener("click", () => this.turn(1));
    this.list.addEventListener("keydown", (event) => this.step(event));
    addEventListener("hashchange", () => this.follow());
    if (!this.follow()) this.open();
  }

  get columns() {
    return data(`features-${this.sae.value}`);
  }

  /** Shows the feature that the address names, as in #feature=0/17; says whether there is one. */
  follow() {
    const [, sae, feature] = location.hash.match(/^#feature=(\d+)\/(\d+)$/) ?? [];
    if (sae === undefined || !this.sae.options[Number(sae)]) return false;
    this.sae.value = sae;
    this.open(Number(feature));
    byId("features").scrollIntoView();
    return true;
  }

  open(feature) {
    const { feature: numbers } = this.columns;
    this.place = new Map(numbers.map((own, at) => [own, at]));
    this.find();
    this.show(this.place.get(feature) ?? this.found[0]);
  }

  /** What is searched of a feature: the words of its contexts, and those that it raises and lowers. */
  textOf(at) {
    const { contexts, raised, lowered } = this.columns;
    const { words, rows } = data("tokens") ?? {};
    const named = (pairs) => (pairs?.[at] ?? []).filter((_, i) => i % 2 === 0).map((word) => words[word]);
    const read = (contexts?.[at] ?? []).map(([first, , levels]) => rows.slice(first, first + levels.length).map((row) => words[row]).join(""));
    return [...read, ...named(raised), ...named(lowered)].join("\n").toLowerCase();
  }

  matches(at, asked) {
    if (/^\d+$/.test(asked) && String(this.columns.feature[at]).startsWith(asked)) return true;
    const key = `${this.sae.value}/${at}`;
    if (!this.texts.has(key)) this.texts.set(key, this.textOf(at));
    return this.texts.get(key).includes(asked);
  }

  find() {
    const asked = this.search.value.trim().toLowerCase();
    const column = this.columns[this.sort.value.replace("-", "")];
    const sign = this.sort.value.startsWith("-") ? 1 : -1;
    this.found = column.map((_, at) => at).filter((at) => !asked || this.matches(at, asked));
    this.found.sort((a, b) => sign * (column[a] - column[b]) || a - b);
    this.page = 0;
    this.turn(0);
  }

  turn(by) {
    this.page += by;
    const first = this.page * PAGE;
    const shown = this.found.slice(first, first + PAGE);
    // Who is in the list by keyboard stays there when it is drawn anew.
    const place = [...this.list.children].findIndex((item) => item.contains(document.activeElement));
    this.list.replaceChildren(...shown.map((at) => element("li", {}, this.row(at))));
    if (place >= 0) this.list.children[Math.min(place, shown.length - 1)]?.firstElementChild.focus();
    this.note();
    const total = this.found.length.toLocaleString("en");
    const all = this.columns.feature.length.toLocaleString("en");
    const range = shown.length ? `${first + 1} to ${first + shown.length} of ` : "";
    byId("feature-count").textContent = `${range}${total}${this.search.value.trim() ? ` found, of ${all}` : ""} features`;
    byId("feature-previous").disabled = this.page === 0;
    byId("feature-next").disabled = first + PAGE >= this.found.length;
  }

  row(at) {
    const { feature, density, gain } = this.columns;
    const cells = [
      element("span", {}, String(feature[at])),
      element("span", { class: "words" }, this.strongest(at).join(" · ")),
      element("span", {}, percent(density[at])),
      element("span", {}, percent(gain[at])),
    ];
    const told = `Feature ${feature[at]}, density ${percent(density[at])}, gain ${percent(gain[at])}`;
    const button = element("button", { type: "button", "data-at": at, "aria-label": `${told}, strongest on ${cells[1].textContent || "nothing"}` }, ...cells);
    button.addEventListener("click", () => this.show(at));
    return button;
  }

  /** The words on which a feature is strongest, each once. */
  strongest(at) {
    const { contexts } = this.columns;
    if (!contexts) return [];
    const { words, rows } = data("tokens");
    const peaks = contexts[at].map(([first, peak]) => words[rows[first + peak]]);
    return [...new Set(peaks.map((word) => (word === "" ? "…" : readable(word).trim() || "␣")))].slice(0, 4);
  }

  step(event) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const item = event.target.closest("li");
    if (!by || !item) return;
    event.preventDefault();
    const next = by > 0 ? item.nextElementSibling : item.previousElementSibling;
    next?.firstElementChild.focus();
  }

  show(at) {
    const detail = byId("feature-detail");
    this.shown = at;
    this.note();
    if (at === undefined) return detail.replaceChildren();
    const { feature, density, gain, peak } = this.columns;
    const moved = this.chosen;
    this.chosen = true;
    if (moved) history.replaceState(null, "", `#feature=${this.sae.value}/${feature[at]}`);
    const facts = [["density", percent(density[at])], ["gain", percent(gain[at])]];
    if (peak) facts.push(["largest value", peak[at] === null ? "–" : number(peak[at])]);
    detail.replaceChildren(
      element("h3", {}, `Feature ${feature[at]}`),
      element("dl", {}, ...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)))),
      ...this.contexts(at),
      ...this.logits(at),
      ...this.neighbours(at),
    );
    detail.scrollTop = 0;
    byId("feature-status").textContent = `Feature ${feature[at]} is shown`;
    const { top, bottom } = detail.getBoundingClientRect();
    if (moved && (bottom < 80 || top > innerHeight)) detail.scrollIntoView();
  }

  note() {
    for (const { firstElementChild: button } of this.list.children) {
      button.setAttribute("aria-current", String(Number(button.dataset.at) === this.shown));
    }
  }

  contexts(at) {
    const { contexts, peak } = this.columns;
    if (!contexts) return [];
    if (!contexts[at].length) return [element("p", { class: "missing" }, "It fires on none of the tokens whose text is kept.")];
    const items = contexts[at].map((context) => this.context(context, peak[at]));
    return [element("h4", {}, "Strongest on"), element("ol", { class: "contexts" }, ...items)];
  }

  context([first, strongest, own], peak) {
    const { words, rows, levels } = data("tokens");
    const share = (at) => levels.indexOf(own[at]) / (levels.length - 1);
    const line = element("p");
    for (let at = 0; at < own.length; at++) {
      const word = readable(words[rows[first + at]]);
      const level = share(at);
      if (!level) {
        line.append(word);
        continue;
      }
      const token = element("span", { class: "token", title: number(level * peak, 2) }, word);
      token.style.setProperty("--level", level.toFixed(3));
      if (at === strongest) token.dataset.peak = "";
      line.append(token);
    }
    return element("li", {}, element("span", { class: "value" }, number(share(strongest) * peak, 2)), line);
  }

  logits(at) {
    const { raised, lowered } = this.columns;
    if (!raised) return [];
    const { words } = data("tokens");
    const column = (title, pairs) => element("div", {}, element("h4", {}, title), this.chips(pairs, (word) => element("span", {}, readable(words[word]))));
    return [element("div", { class: "pair" }, column("Raises the logits of", raised[at]), column("Lowers the logits of", lowered[at]))];
  }

  neighbours(at) {
    const name = (feature) => {
      const place = this.place.get(feature);
      if (place === undefined) return element("span", {}, String(feature));
      const button = element("button", { type: "button", "aria-label": `Feature ${feature}` }, String(feature));
      button.addEventListener("click", () => this.show(place));
      return button;
    };
    return [element("h4", {}, "Nearest directions, by cosine"), this.chips(this.columns.neighbours[at], name)];
  }

  /** Names with their numbers, from pairs laid flat. */
  chips(pairs, name) {
    const items = [];
    for (let i = 0; i < pairs.length; i += 2) items.push(element("li", {}, name(pairs[i]), element("small", {}, pairs[i + 1].toFixed(2))));
    return element("ul", { class: "chips" }, ...items);
  }
}

const browser = once(() => new Features());
if (location.hash.startsWith("#feature=")) browser();
else whenSeen(byId("features"), browser);
addEventListener("hashchange", () => location.hash.startsWith("#feature=") && browser());
