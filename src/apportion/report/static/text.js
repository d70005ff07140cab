// Text coloured by features per token: one panel for each SAE, the same token marked in all of them.

class Text {
  constructor(root) {
    this.root = root;
    this.panels = [...root.querySelectorAll(".panel")].map((panel) => ({
      name: panel.querySelector("h3").textContent.trim(),
      tokens: panel.querySelector(".tokens"),
      now: panel.querySelector(".now"),
    }));
    this.choice = byId("text-document");
    this.choice.addEventListener("change", () => this.show());
    byId("text-numbers").addEventListener("change", (event) => root.classList.toggle("numbered", event.target.checked));
    for (const { tokens } of this.panels) {
      tokens.addEventListener("pointerover", (event) => this.point(event));
      tokens.addEventListener("click", (event) => this.point(event));
      tokens.addEventListener("keydown", (event) => this.step(event, tokens));
      tokens.addEventListener("focus", () => tokens.matches(":focus-visible") && this.mark(this.at ?? 0));
    }
    this.show();
  }

  show() {
    const { documents, counts } = data("text");
    const { words, rows } = data("tokens");
    const place = Number(this.choice.value);
    const [, first, last] = documents[place];
    this.words = rows.slice(first, last).map((row) => words[row]);
    this.counts = counts.map((own) => own[place]);
    this.at = undefined;
    const level = this.scale(this.counts.flat());
    this.panels.forEach(({ tokens, now }, panel) => {
      const k = this.counts[panel];
      tokens.replaceChildren(...this.words.map((word, at) => this.token(word, at, k[at], level(k[at]))));
      tokens.scrollTop = 0;
      now.replaceChildren(`mean ${(k.reduce((sum, one) => sum + one, 0) / k.length).toFixed(1)}`);
    });
  }

  /** From k to the strength of its colour: nearly all tokens lie between the ends of the scale. */
  scale(every) {
    const sorted = every.toSorted((a, b) => a - b);
    const low = sorted[Math.floor(0.01 * (sorted.length - 1))];
    const high = sorted[Math.ceil(0.99 * (sorted.length - 1))];
    for (const end of document.querySelectorAll("#text-scale strong")) end.textContent = end.dataset.end === "low" ? low : high;
    return (k) => (high > low ? Math.min(1, Math.max(0, (k - low) / (high - low))) : 0.5);
  }

  token(word, at, k, level) {
    const features = k === 1 ? "1 feature" : `${k} features`;
    const made = element("span", { class: "token", "data-at": at, "data-k": k, title: features }, readable(word, true));
    made.style.setProperty("--level", level.toFixed(3));
    return made;
  }

  point(event) {
    const at = event.target.dataset.at;
    if (at !== undefined) this.mark(Number(at));
  }

  step(event, tokens) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, Home: -Infinity, End: Infinity };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const last = this.words.length - 1;
    this.mark(Math.min(last, Math.max(0, (this.at ?? -1) + moves[event.key])));
    const marked = tokens.children[this.at];
    const above = marked.offsetTop - tokens.offsetTop;
    if (above < tokens.scrollTop || above > tokens.scrollTop + tokens.clientHeight - 40) tokens.scrollTop = above - 60;
  }

  mark(at) {
    for (const { tokens } of this.panels) tokens.children[this.at]?.classList.remove("here");
    this.at = at;
    this.panels.forEach(({ tokens, now }, panel) => {
      tokens.children[at].classList.add("here");
      now.replaceChildren("k ", element("strong", {}, String(this.counts[panel][at])));
    });
    const told = this.panels.map(({ name }, panel) => `${name}: ${this.counts[panel][at]} features`);
    byId("text-status").textContent = `${readable(this.words[at]) || "part of a character"} – ${told.join(", ")}`;
  }
}

const panels = byId("text-panels");
if (panels) whenSeen(panels, () => new Text(panels));
