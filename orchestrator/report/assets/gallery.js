"use strict";
// What was sampled: a list of groups that only has the rows in sight, and one group, or the same prompt of two runs.

const ROW = 44;

// Children are elements or text; nothing that the page shows is ever read as HTML.
function el(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const grouped = (count) => count.toLocaleString("en");
const unpackBytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// The groups of all runs, in order, and the tokens of each sample unpacked when they are asked for.
class Samples {
  constructor(payload) {
    this.prompts = payload.prompts;
    this.pictures = payload.pictures;
    this.runs = payload.runs.map((run) => run.name);
    this.galleries = payload.runs.map((run) => run.gallery);
    this.groups = [];
    this.byPrompt = new Map();
    this.galleries.forEach((gallery, run) => {
      gallery.starts = [0];
      for (const length of gallery.lengths) gallery.starts.push(gallery.starts.at(-1) + length);
      for (const group of gallery.groups) {
        group.run = run;
        group.key = `${run}.${group.ticket}`;
        group.samples = gallery.samples.slice(group.first, group.first + group.count);
        const prompt = this.prompts[group.prompt];
        group.label = prompt.id;
        group.kind = prompt.kind;
        const key = `${run} ${group.prompt}`;
        if (!this.byPrompt.has(key)) this.byPrompt.set(key, []);
        this.byPrompt.get(key).push(group);
        this.groups.push(group);
      }
    });
    this.kinds = [...new Set(this.prompts.map((prompt) => prompt.kind))].filter(Boolean).sort();
  }

  ofPrompt(run, prompt) {
    return this.byPrompt.get(`${run} ${prompt}`) || [];
  }

  // Text, version and log-prob difference (learner - sampler; null: unknown) of each token.
  tokens(group, index) {
    const gallery = this.galleries[group.run];
    if (!gallery.words) {
      const bytes = unpackBytes(gallery.tokens);
      const wide = gallery.vocabulary.length > 65536;
      gallery.words = wide ? new Uint32Array(bytes.buffer) : new Uint16Array(bytes.buffer);
      gallery.steps = new Int8Array(unpackBytes(gallery.differences).buffer);
    }
    const start = gallery.starts[group.first + index];
    const [least, most] = gallery.nats;
    const found = [];
    for (const [version, count] of group.samples[index].v) {
      for (let place = 0; place < count; place++) {
        const at = start + found.length;
        const step = gallery.steps[at];
        const nats = least * Math.sinh((step / 127) * Math.asinh(most / least));
        found.push({ text: gallery.vocabulary[gallery.words[at]], version, step, nats: step === -128 ? null : nats });
      }
    }
    return found;
  }
}

const ANY = { run: "", kind: "", from: "", to: "", low: "", high: "", malformed: "" };

function matches(filter, group, sample) {
  const versions = sample.v.map(([version]) => version);
  return (
    (filter.from === "" || Math.max(...versions) >= +filter.from) &&
    (filter.to === "" || Math.min(...versions) <= +filter.to) &&
    (filter.low === "" || sample.r >= +filter.low) &&
    (filter.high === "" || sample.r <= +filter.high) &&
    (filter.malformed === "" || (filter.malformed === "only") === Boolean(sample.m))
  );
}

class Gallery {
  constructor(root) {
    this.root = root;
    this.at = 0; // the sample
    const place = new URLSearchParams(location.hash.startsWith("#samples?") ? location.hash.slice(9) : "");
    this.filter = { ...ANY };
    for (const name of Object.keys(ANY)) this.filter[name] = place.get(name) || "";
    this.key = place.get("group");
    this.beside = place.get("beside") !== "no";
    document.addEventListener("keydown", (event) => this.onKey(event));
    addEventListener("resize", () => this.shown.length && (this.drawList(), this.drawStrips()));
  }

  // Another payload: filters and place stay.
  show(payload) {
    this.samples = new Samples(payload);
    if (!this.samples.groups.length) {
      this.shown = [];
      this.root.replaceChildren(el("p", { class: "card note" }, "No samples were kept: traces.share was 0, or no step was made yet. A run with traces.share above 0 keeps them."));
      return;
    }
    this.controls = this.makeFilters();
    this.count = el("p", { class: "keys" });
    this.inner = el("div", { style: "position: relative" });
    this.list = el("div", { class: "list card", tabindex: "0", role: "listbox", "aria-label": "groups", onscroll: () => this.drawList() }, this.inner);
    this.group = el("div", { id: "group" });
    this.root.replaceChildren(this.controls, this.count, el("div", { class: "gallery" }, this.list, this.group));
    this.apply();
  }

  makeFilters() {
    const choice = (name, label, options) =>
      el("label", {}, label, el("select", { name, onchange: (event) => this.set(name, event.target.value) },
        options.map(([value, text]) => el("option", { value, selected: this.filter[name] === value }, text))));
    const number = (name, label) =>
      el("label", {}, label, el("input", { type: "number", step: "any", name, value: this.filter[name], oninput: (event) => this.set(name, event.target.value) }));
    const many = this.samples.runs.length > 1;
    return el("form", { class: "filters card", onsubmit: (event) => event.preventDefault() },
      many ? choice("run", "run", [["", "all"], ...this.samples.runs.map((name, run) => [String(run), name])]) : null,
      many ? el("label", {}, el("input", { type: "checkbox", name: "beside", checked: this.beside, onchange: (event) => { this.beside = event.target.checked; this.apply(); } }), "runs side by side") : null,
      this.samples.kinds.length > 1 ? choice("kind", "view", [["", "any"], ...this.samples.kinds.map((kind) => [kind, kind])]) : null,
      number("from", "version"), number("to", "to"),
      number("low", "reward"), number("high", "to"),
      choice("malformed", "malformed", [["", "any"], ["only", "only"], ["no", "none"]]),
      el("button", { type: "button", onclick: () => { this.filter = { ...ANY }; const made = this.makeFilters(); this.controls.replaceWith(made); this.controls = made; this.apply(); } }, "clear"));
  }

  set(name, value) {
    this.filter[name] = value;
    this.apply();
  }

  // Groups with a sample that passes the filter; of these the one that was in sight, or the first.
  apply() {
    const { run, kind } = this.filter;
    this.shown = this.samples.groups.filter((group) =>
      (run === "" || group.run === +run) && (kind === "" || group.kind === kind) &&
      group.samples.some((sample) => matches(this.filter, group, sample)));
    const passed = this.shown.reduce((sum, group) => sum + group.samples.filter((sample) => matches(this.filter, group, sample)).length, 0);
    const all = this.samples.groups.reduce((sum, group) => sum + group.count, 0);
    const key = (name) => el("kbd", {}, name);
    this.count.replaceChildren(
      `${grouped(this.shown.length)} of ${grouped(this.samples.groups.length)} groups, ${grouped(passed)} of ${grouped(all)} samples.  `,
      key("←"), " ", key("→"), " other group   ", key("↑"), " ", key("↓"), " sample   ", key("Home"), " ", key("End"), " first, last");
    this.inner.style.height = `${this.shown.length * ROW}px`;
    this.place = Math.max(0, this.shown.findIndex((group) => group.key === this.key));
    this.go(this.place, this.at);
  }

  go(place, at = 0) {
    if (!this.shown.length) {
      this.drawList();
      this.group.replaceChildren(el("p", { class: "card note" }, "No sample passes these filters."));
      this.remember();
      return;
    }
    this.place = Math.min(Math.max(place, 0), this.shown.length - 1);
    this.key = this.shown[this.place].key;
    this.at = Math.min(at, this.shown[this.place].count - 1);
    const top = this.place * ROW;
    const { scrollTop, clientHeight } = this.list;
    if (top < scrollTop) this.list.scrollTop = top;
    else if (top + ROW > scrollTop + clientHeight) this.list.scrollTop = top + ROW - clientHeight;
    this.drawList();
    this.drawGroup();
    this.remember();
  }

  remember() {
    const place = new URLSearchParams(Object.entries(this.filter).filter(([, value]) => value !== ""));
    if (this.key) place.set("group", this.key);
    if (!this.beside) place.set("beside", "no");
    history.replaceState(null, "", `#samples?${place}`);
  }

  onKey(event) {
    const box = this.root.getBoundingClientRect();
    if (box.top > innerHeight || box.bottom < 0 || !this.shown.length || event.altKey || event.ctrlKey || event.metaKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const last = this.shown[this.place].count - 1;
    const moves = {
      ArrowLeft: () => this.go(this.place - 1),
      ArrowRight: () => this.go(this.place + 1),
      Home: () => this.go(0),
      End: () => this.go(this.shown.length - 1),
      ArrowUp: () => this.choose(Math.max(0, this.at - 1)),
      ArrowDown: () => this.choose(Math.min(last, this.at + 1)),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  }

  choose(at) {
    this.at = at;
    const mates = [...this.group.querySelectorAll(".mate.mine")];
    mates.forEach((mate, index) => mate.classList.toggle("at", index === at));
    mates[at].scrollIntoView({ block: "nearest" });
  }

  drawList() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW) - 4);
    const last = Math.min(this.shown.length, Math.ceil((this.list.scrollTop + this.list.clientHeight) / ROW) + 4);
    const rows = [];
    for (let place = first; place < last; place++) {
      const group = this.shown[place];
      const mean = group.samples.reduce((sum, sample) => sum + sample.r, 0) / group.count;
      const run = this.samples.runs.length > 1 ? `${this.samples.runs[group.run]}, ` : "";
      rows.push(el("div", { class: "row", role: "option", style: `top: ${place * ROW}px`, "aria-selected": String(place === this.place), onclick: () => this.go(place) },
        el("div", {}, el("b", {}, signed(mean)), group.label),
        el("div", { class: "quiet" }, `${run}step ${group.step}, ${group.count} samples`)));
    }
    this.inner.replaceChildren(...rows);
  }

  drawGroup() {
    const group = this.shown[this.place];
    const prompt = this.samples.prompts[group.prompt];
    const names = ["before", "after"];
    const pictures = prompt.pictures.map((place, index) => el("figure", {},
      this.samples.pictures[place] ? el("img", { src: `data:image/webp;base64,${this.samples.pictures[place]}`, alt: `picture ${index + 1}` }) : "a damaged picture",
      el("figcaption", {}, prompt.pictures.length === 2 ? names[index] : `picture ${index + 1}`)));
    const shown = this.beside ? this.samples.runs.map((_, run) => (run === group.run ? group : this.nearest(run, group))) : [group];
    const many = shown.length > 1;
    this.strips = [];
    this.group.replaceChildren(
      el("div", { class: "card" }, el("h3", {}, prompt.id),
        pictures.length ? el("div", { class: "pictures" }, pictures) : null,
        el("div", { class: "truth" }, prompt.truth === null ? el("span", { class: "note" }, "Its data are not there: no pictures, no truth.") : [el("b", {}, "true: "), prompt.truth])),
      el("div", { class: many ? "columns many" : "columns" }, shown.map((each, run) => this.column(each, many ? run : group.run, group))));
    this.drawStrips();
  }

  // Of the same prompt in another run, the group of the nearest step.
  nearest(run, group) {
    const distance = (other) => Math.abs(other.step - group.step);
    return this.samples.ofPrompt(run, group.prompt).reduce((best, other) => (best && distance(best) <= distance(other) ? best : other), null);
  }

  column(group, run, current) {
    const name = this.samples.runs.length > 1 ? `${this.samples.runs[run]}, ` : "";
    if (!group) return el("div", { class: "column" }, el("h3", {}, this.samples.runs[run]), el("p", { class: "card note" }, "This run has no group of this prompt on the page."));
    const others = this.samples.ofPrompt(run, group.prompt);
    const step = others.length > 1
      ? el("select", { "aria-label": "step", onchange: (event) => this.visit(others[event.target.selectedIndex]) },
          others.map((other) => el("option", { selected: other === group }, `step ${other.step}`)))
      : `step ${group.step}`;
    return el("div", { class: "column" },
      el("h3", {}, name, step, el("span", { class: "quiet" }, group.worker && ` sampled by ${group.worker}`)),
      el("div", { class: "mates" }, group.samples.map((sample, index) => this.mate(group, sample, index, group === current))));
  }

  visit(group) {
    const place = this.shown.indexOf(group);
    if (place >= 0) return this.go(place);
    this.key = group.key;
    this.filter = { ...ANY };
    const made = this.makeFilters();
    this.controls.replaceWith(made);
    this.controls = made;
    this.apply();
  }

  mate(group, sample, index, mine) {
    const terms = this.samples.galleries[group.run].terms;
    const paid = terms.map((name, place) => [name, sample.t[place]]).filter(([, value]) => value !== 0);
    const tokens = sample.v.reduce((sum, [, count]) => sum + count, 0);
    const [first, ended] = sample.s;
    const about = [`${grouped(tokens)} tokens`, ended !== null && `${ended.toFixed(1)} s`, first !== null && `first after ${first.toFixed(1)} s`];
    const strip = el("canvas", { class: "strip", role: "img", "aria-label": "versions above, log-prob differences below, a cell a token" });
    const token = el("div", { class: "token" });
    this.strips.push({ strip, token, group, index });
    const out = !matches(this.filter, group, sample);
    return el("article", { class: `card mate${mine ? " mine" : ""}${mine && index === this.at ? " at" : ""}${out ? " out" : ""}`, onclick: mine ? () => this.choose(index) : null },
      el("header", {}, el("b", {}, signed(sample.r)), about.filter(Boolean).join(", "),
        sample.f === "length" ? el("span", { class: "chip wrong" }, "cut off") : null,
        sample.m ? el("span", { class: "chip wrong" }, "malformed") : null),
      el("div", { class: "chips" }, paid.map(([name, value]) => el("span", { class: "chip" }, `${name} ${signed(value, 1)}`))),
      sample.m ? el("p", { class: "note" }, sample.m) : null,
      sample.n ? el("div", { class: "reasoning" }, sample.n) : null,
      sample.x !== undefined ? el("div", { class: "reply" }, sample.x) : null,
      sample.c ? el("div", { class: "chips answer" }, sample.c.length ? sample.c.map(claim) : el("span", { class: "chip" }, "claims nothing")) : null,
      sample.g && sample.g.length ? el("div", { class: "chips" }, sample.g.map((text) => el("span", { class: "chip missing" }, `missing: ${text}`))) : null,
      strip, token);
  }

  drawStrips() {
    for (const strip of this.strips || []) drawStrip(strip, this.samples);
  }
}

function claim([text, right]) {
  const look = { true: ["right", " ✓"], false: ["wrong", " ✗"] }[right] || ["", ""];
  return el("span", { class: `chip ${look[0]}` }, text + look[1]);
}

const CELL = 7;
const LINE = 20;
const VERSION_COLORS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"];

// Two lines of cells, wrapped: the version of each token, and under it the log-prob difference, blue below 0, red above.
function drawStrip({ strip, token, group, index }, samples) {
  const tokens = samples.tokens(group, index);
  const width = strip.clientWidth || 280;
  const inLine = Math.max(1, Math.floor(width / CELL));
  const height = Math.ceil(tokens.length / inLine) * LINE;
  const scale = devicePixelRatio || 1;
  strip.width = width * scale;
  strip.height = height * scale;
  strip.style.height = `${height}px`;
  const pen = strip.getContext("2d");
  pen.scale(scale, scale);
  const empty = style("--none");
  tokens.forEach((each, place) => {
    const x = (place % inLine) * CELL;
    const y = Math.floor(place / inLine) * LINE;
    pen.fillStyle = VERSION_COLORS[each.version % VERSION_COLORS.length];
    pen.fillRect(x, y, CELL - 1, 5);
    pen.fillStyle = empty;
    pen.fillRect(x, y + 6, CELL - 1, 10);
    if (each.nats === null) return;
    pen.globalAlpha = Math.min(1, Math.abs(each.step) / 90);
    pen.fillStyle = each.step < 0 ? "#2f7ed8" : "#d5412b";
    pen.fillRect(x, y + 6, CELL - 1, 10);
    pen.globalAlpha = 1;
  });
  const known = tokens.filter((each) => each.nats !== null);
  const largest = known.reduce((most, each) => Math.max(most, Math.abs(each.nats)), 0);
  const versions = group.samples[index].v.map(([version]) => version);
  const summary = `version ${[...new Set(versions)].join(", ")}` +
    (known.length ? `; log-prob, learner − sampler: ${largest ? `at most ${largest.toPrecision(2)}` : "below 0.0001"}` : "; no log-probs of the learner: it did not learn from it");
  token.textContent = summary;
  strip.onpointerleave = () => (token.textContent = summary);
  strip.onpointermove = (event) => {
    const place = Math.floor(event.offsetY / LINE) * inLine + Math.min(inLine - 1, Math.floor(event.offsetX / CELL));
    const each = tokens[place];
    if (each) token.textContent = `${place + 1}: “${each.text}”, version ${each.version}` + (each.nats === null ? "" : `, learner − sampler ${signed(each.nats, 4)}`);
  };
}
