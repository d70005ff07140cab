// Charts: plotly is read and run when the first of them comes near, and coloured as the page is.

const plotly = once(() => {
  document.head.append(element("script", {}, byId("plotly").textContent));
  return window.Plotly;
});

const colours = () => {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(`--${name}`).trim();
};

/** The layout in the page's type and colours; an axis keeps what it says of itself. */
const themedLayout = (layout, of) => {
  const axis = { gridcolor: of("rule"), linecolor: of("rule"), zerolinecolor: of("rule"), automargin: true, fixedrange: true };
  const axes = Object.keys(layout).filter((name) => /^[xy]axis/.test(name));
  return {
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: of("soft") },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    margin: { l: 52, r: 12, t: 10, b: 44 },
    hoverlabel: { bgcolor: of("raised"), bordercolor: of("rule"), font: { color: of("ink") }, align: "left" },
    hovermode: "closest",
    showlegend: false,
    dragmode: false,
    autosize: true,
    ...layout,
    ...Object.fromEntries(axes.map((name) => [name, { ...axis, ...layout[name], title: { ...layout[name].title, font: { size: 13 } } }])),
    shapes: (layout.shapes ?? []).map((shape) => ({ ...shape, line: { ...shape.line, color: of("soft") } })),
    annotations: (layout.annotations ?? []).map((note) => ({ ...note, font: { size: 13, color: of("ink") } })),
  };
};

const themedTrace = (trace, of, hidden) => {
  const color = of(`series-${trace.meta.series % 8}`);
  return {
    ...trace,
    visible: !hidden.has(trace.meta.label),
    line: { ...trace.line, color },
    marker: { ...trace.marker, color, line: { color: of("paper"), width: trace.type === "bar" ? 0 : 1 } },
    ...(trace.error_y && { error_y: { ...trace.error_y, color } }),
  };
};

class Chart {
  constructor(node) {
    this.node = node;
    this.plot = node.querySelector(".plot");
    this.figure = JSON.parse(node.querySelector("script").textContent);
    this.hidden = new Set();
    this.drawn = false;
    for (const button of node.querySelectorAll(".key button")) button.addEventListener("click", () => this.toggle(button));
  }

  toggle(button) {
    const shown = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", String(!shown));
    this.hidden[shown ? "add" : "delete"](button.dataset.label);
    if (this.drawn) this.draw();
  }

  draw() {
    const of = colours();
    const traces = this.figure.data.map((trace) => themedTrace(trace, of, this.hidden));
    this.drawn = true;
    plotly().react(this.plot, traces, themedLayout(this.figure.layout, of), { displayModeBar: false, responsive: true });
  }
}

const charts = [...document.querySelectorAll(".chart")].map((node) => new Chart(node));
for (const chart of charts) whenSeen(chart.plot, () => chart.draw());
const redraw = (which) => charts.filter(which).forEach((chart) => chart.draw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw((chart) => chart.drawn));
addEventListener("beforeprint", () => redraw((chart) => !chart.drawn));
