"use strict";
// Draws all that comes from data; a page that is served draws again when there is more (live.js).

// Puts nodes into a section in place of those drawn before; a section without any is hidden, unless it says why.
function fill(selector, nodes, empty) {
  const section = document.querySelector(selector);
  section.hidden = !nodes.length && !empty;
  section.querySelector(".drawn").replaceChildren(...(nodes.length || !empty ? nodes : [element("p", { class: "empty" }, empty)]));
}

function draw(data) {
  const all = data.sections.flatMap(({ charts }) => charts);
  for (const { id, charts } of data.sections) {
    const cards = charts.map((chart) => chartCard(chart, ranges(all.filter((other) => other.axes === chart.axes && other.kind === chart.kind))));
    fill(`[data-section="${id}"]`, cards.length ? [element("div", { class: "grid" }, ...cards)] : [], id === "first" ? "No figures yet." : "");
  }
  const roles = data.mechanism.length ? ["anchor", "negative"].map((role) => mechanismCard(role, data.mechanism)) : [];
  fill("#mechanism", roles.length ? [element("div", { class: "grid wide" }, ...roles)] : [],
    data.has_training ? "No anchored subgroup yet: events.jsonl holds no such mixed group." : "");
  fill("#answers", data.answers.length ? browser("answers", data.answers) : [], "");
  fill("#samples", data.samples.length ? browser("samples", data.samples) : [],
    data.has_training ? "No sample groups yet: samples.jsonl is missing or empty." : "");
}

draw(JSON.parse(document.getElementById("data").textContent));
