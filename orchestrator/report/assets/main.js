"use strict";
// Unpacks what the page holds, shows it, and on a live page asks its server what is new.

const ASK_EVERY_MS = 2000;

async function unpack(holder) {
  const packed = await fetch(`data:application/octet-stream;base64,${holder.textContent.trim()}`);
  holder.remove();
  return new Response(packed.body.pipeThrough(new DecompressionStream("gzip"))).text();
}

function showStatus(runs, names, notes) {
  document.getElementById("status").replaceChildren(...runs.map((status, run) =>
    el("div", { class: "card status" },
      el("div", { class: "headline" }, names.length > 1 ? `${names[run]}: ` : "", status.headline),
      status.alarms.map((text) => el("p", { class: "alarm" }, text)),
      status.hints.map((text) => el("p", { class: "hint" }, text)),
      notes[run].map((text) => el("p", { class: "note" }, text)))));
}

class Page {
  constructor() {
    this.gallery = new Gallery(document.getElementById("gallery"));
    this.charts = new Charts();
  }

  show(payload) {
    this.names = payload.runs.map((run) => run.name);
    this.notes = payload.runs.map((run) => run.notes);
    showStatus(payload.runs.map((run) => run.status), this.names, this.notes);
    this.gallery.show(payload);
    this.charts.show(payload);
  }

  async ask() {
    const answer = await fetch("/status");
    const { stamp, runs } = await answer.json();
    showStatus(runs, this.names, this.notes);
    if (stamp === this.stamp) return;
    const payload = await fetch("/payload");
    this.show(await payload.json());
    this.stamp = payload.headers.get("X-Stamp");
  }

  // Until the server is gone; what was last shown stays.
  async live(stamp) {
    this.stamp = stamp;
    for (;;) {
      await new Promise((done) => setTimeout(done, ASK_EVERY_MS));
      try {
        await this.ask();
      } catch (error) {
        document.getElementById("status").prepend(el("p", { class: "alarm" }, `star-r1 watch has ended (${error.message}): this page stays as it is.`));
        return;
      }
    }
  }
}

(async () => {
  const page = new Page();
  const payload = JSON.parse(await unpack(document.getElementById("payload")));
  page.show({ ...payload, pictures: JSON.parse(document.getElementById("pictures").textContent) });
  document.documentElement.dataset.ready = performance.now().toFixed(0);
  if (document.body.dataset.stamp !== undefined) page.live(document.body.dataset.stamp);
})();
