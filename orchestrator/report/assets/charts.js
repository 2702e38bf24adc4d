"use strict";
// Charts by Plotly, which is unpacked when the rest of the page is there; each is drawn when it comes into sight.

const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b59f00", "#8c6bb1", "#7f7f7f"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const GOODPUT_COLORS = { productive: "#009e73", overhead: "#e69f00", idle: "#9aa4b2", wasted: "#d55e00" };

function axis(more) {
  return { gridcolor: style("--grid"), zerolinecolor: style("--grid"), linecolor: style("--grid"), automargin: true, ...more };
}

function layoutOf(more) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", uirevision: "kept",
    font: { family: "system-ui, sans-serif", size: 12, color: style("--quiet") },
    margin: { l: 46, r: 10, t: 8, b: 34 }, height: 250, hovermode: "closest",
    hoverlabel: { bgcolor: style("--card"), bordercolor: style("--edge"), font: { color: style("--ink") } },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, maxheight: 0.9, traceorder: "normal", font: { size: 11 } }, showlegend: true, ...more,
  };
}

// Room for the legend of many lines.
const heightFor = (traces) => 250 + 18 * Math.max(0, Math.ceil(traces.length / 2) - 3);

// A line of one column of a run's rows. Runs differ by dash, lines of one run by colour.
function line(runs, run, values, name, color, more) {
  const named = runs.length > 1 ? `${runs[run].name}: ${name}` : name;
  const few = values.x.length < 40;
  return { type: "scatter", mode: few ? "lines+markers" : "lines", x: values.x, y: values.y, name: named, marker: { size: 4 }, connectgaps: true,
    line: { color: COLORS[color % COLORS.length], dash: DASHES[run % DASHES.length], width: 1.7 }, ...more };
}

// Of *columns*, [key, name] each, the lines that any run has.
function lines(runs, columns, more) {
  return runs.flatMap((run, place) => {
    const rows = run.series.rows;
    return columns.flatMap(([key, name], color) => (rows[key] ? [line(runs, place, { x: rows.step, y: rows[key] }, name, color, more)] : []));
  });
}

function learningCharts(runs) {
  const terms = [...new Set(runs.flatMap((run) => run.series.terms))].sort();
  const shares = [...new Set(runs.flatMap((run) => run.series.shares))];
  const headline = runs.map((run) => run.series.headline).find(Boolean);
  const percent = { yaxis: axis({ tickformat: ".0%", rangemode: "tozero" }) };
  const heldOut = runs.flatMap((run, place) => ["all", "same view", "changed view"].flatMap((view, color) => {
    const known = run.series.held_out.filter((each) => each[view] !== null);
    return known.length ? [line(runs, place, { x: known.map((each) => each.version), y: known.map((each) => each[view]) }, view, color, { mode: "lines+markers", text: known.map((each) => each.name) })] : [];
  }));
  return [
    ["Reward by term", "mean over the samples of a step", lines(runs, [["reward", "total"], ...terms.map((term) => [`reward/${term}`, term])])],
    [`Held-out ${headline}`, "greedy answers, by version", heldOut, { yaxis: axis({ tickformat: ".0%", range: [-0.03, 1.03] }), xaxis: axis({ title: { text: "version" } }) }],
    [`Samples that are ${shares.join(", ")}`, "share of a step's samples", lines(runs, shares.map((key) => [key, key])), percent],
    ["Answer length, tokens", "mean over samples", lines(runs, [["answer_length", "tokens"]]), { yaxis: axis({ rangemode: "tozero" }) }],
    ["Entropy, nats", "estimated from the sampled tokens", lines(runs, [["entropy", "entropy"]]), { yaxis: axis({ rangemode: "tozero" }) }],
    ["Groups with equal rewards, answers cut off", "shares; equal rewards teach nothing", runs.flatMap((run, place) => {
      const rows = run.series.rows;
      const equal = rows.with_signal ? [line(runs, place, { x: rows.step, y: rows.with_signal.map((value) => (value === null ? null : 1 - value)) }, "equal rewards", 0)] : [];
      return [...equal, ...(rows.cut_off ? [line(runs, place, { x: rows.step, y: rows.cut_off }, "cut off", 1)] : [])];
    }), percent],
    ["Mismatch of sampler and learner", "same tokens, both engines; logarithmic", lines(runs, [["sampler_kl", "KL (k3)"], ["max_abs_log_ratio", "largest log ratio"]]), { yaxis: axis({ type: "log", exponentformat: "power", dtick: 2 }) }],
    ["Loss", "of the step", lines(runs, [["loss", "loss"]])],
    ["Seconds of a step", "the learner waits, learns, and publishes beside its next step", lines(runs, [["wait_s", "wait"], ["learn_s", "learn"], ["publish_s", "publish"], ["step_s", "step"]]), { yaxis: axis({ rangemode: "tozero" }) }],
  ];
}

function freshnessCharts(runs) {
  const age = runs.map((run, place) => {
    const { steps, shares } = run.series.ages;
    const named = runs.length > 1 ? ` (${run.name})` : "";
    return [`Age of tokens, versions${named}`, "share of a step's tokens", shares.map((share, old) => ({ type: "scatter", mode: "lines", stackgroup: "one", x: steps, y: share, name: String(old), line: { width: 0.5, color: COLORS[old % COLORS.length] } })), { yaxis: axis({ tickformat: ".0%", range: [0, 1] }) }];
  });
  const cap = runs.map((run, place) => line(runs, place, { x: [run.series.rows.step?.[0], run.series.rows.step?.at(-1)], y: [run.series.max_staleness, run.series.max_staleness] }, "cap", 7, { mode: "lines" }));
  const stale = lines(runs, [["staleness", "mean"], ["staleness_max", "largest"]]);
  return [
    ["Staleness, versions", "of groups, by their oldest token; never above the cap", stale.length ? [...stale, ...cap] : [], { yaxis: axis({ rangemode: "tozero" }) }],
    ...age,
    ["Versions an answer", "mean over a step's samples: above 1 where new weights came in the middle", runs.flatMap((run, place) => (run.series.ages.steps.length ? [line(runs, place, { x: run.series.ages.steps, y: run.series.ages.a_sample }, "versions", 0)] : []))],
  ];
}

function behaviourCharts(runs) {
  const first = runs.map((run) => run.series.behaviour[0]).find(Boolean);
  if (!first) return [];
  return Object.keys(first).filter((name) => !["versions", "samples"].includes(name)).map((name) => {
    const share = runs.every((run) => run.series.behaviour.every((bin) => Object.values(bin[name] || {}).every((value) => value >= 0 && value <= 1)));
    const found = runs.flatMap((run, place) => {
      const views = [...new Set(run.series.behaviour.flatMap((bin) => Object.keys(bin.samples)))];
      return views.map((view, color) => {
        const bins = run.series.behaviour.filter((bin) => bin[name]?.[view] !== undefined);
        return line(runs, place, { x: bins.map((bin) => (bin.versions[0] + bin.versions[1]) / 2), y: bins.map((bin) => bin[name][view]) }, view, color);
      });
    });
    return [name, "mean over sampled answers, by the version that sampled them", found, { xaxis: axis({ title: { text: "version" } }), yaxis: axis(share ? { tickformat: ".0%", range: [-0.03, 1.03] } : { rangemode: "tozero" }) }];
  });
}

// Lanes, window, events and goodput of one run over one axis of time, one above the other.
function timeChart(run) {
  const { from, length, lanes, window: held, events, lines: names, goodput } = run.timeline;
  const used = names.filter((_, place) => events.some((event) => event[1] === place));
  const parts = [
    goodput && ["goodput", 90], lanes.length && ["lanes", 20 * lanes.length + 8], ["window", 110], used.length && ["events", 18 * used.length + 14],
  ].filter(Boolean);
  const gap = 26;
  const height = parts.reduce((sum, [, size]) => sum + size, 0) + gap * (parts.length - 1);
  const layout = layoutOf({ height: height + 90, margin: { l: 46, r: 10, t: 8, b: 40 }, xaxis: axis({ title: { text: "seconds of the run" }, range: [from, length], anchor: `y${parts.length === 1 ? "" : parts.length}` }) });
  const at = {};
  let top = height;
  parts.forEach(([name, size], place) => {
    const number = place ? place + 1 : "";
    at[name] = `y${number}`;
    layout[`yaxis${number}`] = axis({ domain: [Math.max(0, (top - size) / height), top / height], anchor: "x" });
    top -= size + gap;
  });
  const width = length / (lanes[0]?.level.length || 1);
  const edges = Array.from({ length: held.held.length + 1 }, (_, place) => (place * length) / held.held.length);
  const traces = [];
  if (lanes.length) {
    const most = lanes.map((lane) => Math.max(...lane.level, 1e-9));
    layout[at.lanes.replace("y", "yaxis")].autorange = "reversed";
    traces.push({ type: "heatmap", x: edges, y: lanes.map((lane) => lane.name), z: lanes.map((lane, row) => lane.level.map((level) => level / most[row])),
      customdata: lanes.map((lane) => lane.level.map((level) => `${level} ${lane.unit}`)), hovertemplate: "%{y}, %{x:.1f} s: %{customdata}<extra></extra>",
      colorscale: [[0, style("--none")], [1, style("--accent")]], zmin: 0, zmax: 1, showscale: false, ygap: 3, xaxis: "x", yaxis: at.lanes });
  }
  const steps = edges.slice(1);
  const level = (name, y, color, more) => y && traces.push({ type: "scatter", mode: "lines", x: steps, y, name, line: { color, width: 1.4, shape: "hv" }, yaxis: at.window, hovertemplate: `%{y} groups ${name}<extra></extra>`, ...more });
  level("in the window", held.held, COLORS[0]);
  level("not taken by a step", held.waiting, COLORS[1]);
  level("ready for the learner", held.ready, COLORS[2], { fill: "tozeroy" });
  level("cap", steps.map(() => held.cap), COLORS[7], { line: { color: COLORS[7], dash: "dash", width: 1.2 } });
  layout[at.window.replace("y", "yaxis")].rangemode = "tozero";
  if (used.length) {
    layout[at.events.replace("y", "yaxis")] = { ...layout[at.events.replace("y", "yaxis")], type: "category", categoryorder: "array", categoryarray: [...used].reverse(), range: [-0.6, used.length - 0.4] };
    traces.push({ type: "scatter", mode: "markers", x: events.map((event) => event[0]), y: events.map((event) => names[event[1]]), text: events.map((event) => escaped(event[2])),
      hovertemplate: "%{x:.1f} s: %{text}<extra></extra>", marker: { size: 7, symbol: "line-ns-open", color: events.map((event) => (names[event[1]] === "lost" ? "#d5412b" : style("--quiet"))) }, showlegend: false, yaxis: at.events });
  }
  if (goodput) {
    goodput.names.forEach((name, place) => traces.push({ type: "scatter", mode: "lines", stackgroup: "goodput", x: goodput.at, y: goodput.shares[place], name: `${name} ${goodput.total[place].toFixed(1)} %`,
      line: { width: 0, shape: "vh" }, fillcolor: GOODPUT_COLORS[name], marker: { color: GOODPUT_COLORS[name] }, yaxis: at.goodput, hovertemplate: `%{y:.1f} % ${name}<extra></extra>` }));
    Object.assign(layout[at.goodput.replace("y", "yaxis")], { range: [0, 100], ticksuffix: " %" });
  }
  return ["", null, traces, layout];
}

// Plotly reads some tags in its texts.
const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

class Charts {
  constructor() {
    this.drawn = new Map();
    this.ready = null;
    this.watch = new IntersectionObserver((entries) => entries.forEach((entry) => entry.isIntersecting && this.draw(entry.target)), { rootMargin: "300px" });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.payload && this.show(this.payload));
  }

  show(payload) {
    this.payload = payload;
    const { runs } = payload;
    this.fill("time", runs.filter((run) => run.timeline).map((run) => [runs.length > 1 ? run.name : "", "lanes: a fuller colour is busier; dashed: what the window may hold", null, null, () => timeChart(run)]));
    this.fill("learning", learningCharts(runs));
    this.fill("freshness", freshnessCharts(runs));
    this.fill("behaviour", behaviourCharts(runs));
  }

  // A chart without a line is left out.
  fill(section, charts) {
    const element = document.querySelector(`#${section}`);
    const shown = charts.filter(([, , traces, , make]) => make || traces.length);
    element.hidden = !shown.length;
    const names = shown.map(([title]) => title).join("|");
    const figures = element.querySelector(".figures");
    if (figures.dataset.names !== names) {
      figures.dataset.names = names;
      figures.replaceChildren(...shown.map(([title, note]) => el("div", { class: "card" }, el("h3", {}, title, " ", el("span", { class: "quiet" }, note)), el("div", { class: "plot" }))));
    }
    [...figures.querySelectorAll(".plot")].forEach((plot, place) => {
      const [, , traces, layout, make] = shown[place];
      this.drawn.set(plot, make || (() => [null, null, traces, layoutOf({ height: heightFor(traces), xaxis: axis({ title: { text: "step" } }), yaxis: axis(), ...layout })]));
      this.watch.unobserve(plot);
      this.watch.observe(plot);
    });
  }

  async draw(plot) {
    this.ready ||= loadPlotly();
    await this.ready;
    const [, , traces, layout] = this.drawn.get(plot)();
    await Plotly.react(plot, traces, layout, { displayModeBar: false, responsive: true });
  }
}

async function loadPlotly() {
  const script = el("script");
  script.textContent = await unpack(document.getElementById("plotly"));
  document.head.append(script);
}
