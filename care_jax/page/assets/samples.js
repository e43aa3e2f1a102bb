"use strict";
// The browsers of held-out answers and of sample groups. Model text goes in as text nodes only.

const PAGE_SIZE = 4;
const ROLES = ["anchor", "positive", "reflected", "negative", "unselected"];
const OUTCOMES = { ALL_WRONG: "all wrong", MIXED: "mixed", ALL_CORRECT: "all correct" };

const badge = (text, kind) => element("span", { class: `badge ${kind}` }, text);

// Text with its tags set apart, so that think and answer can be told at a glance.
function tagged(text, className = "text") {
  const pieces = text.split(/(<\/?(?:think|answer)>)/);
  const node = element("p", { class: className });
  pieces.forEach((piece, index) => node.append(index % 2 ? element("span", { class: "tag" }, piece) : piece));
  return node;
}

function clipped(text) {
  const node = tagged(text);
  if (text.length > 420 || text.split("\n").length > 6) {
    node.classList.add("clip");
    node.title = "Click to show all";
    node.addEventListener("click", () => node.classList.remove("clip"));
  }
  return node;
}

function picture(source) {
  const image = element("img", { src: source, alt: "image of the question" });
  image.addEventListener("load", () => {
    const scale = Math.floor(224 / Math.max(image.naturalWidth, image.naturalHeight));
    if (scale >= 2) {
      image.classList.add("small");
      image.style.width = `${image.naturalWidth * scale}px`;
    }
  });
  return image;
}

function advantageCell(value, largest) {
  const bar = element("i", { class: value < 0 ? "minus" : "plus" });
  const share = (Math.abs(value) / largest) * 50;
  bar.style.width = `${share}%`;
  bar.style.left = `${value < 0 ? 50 - share : 50}%`;
  const text = value === 0 ? "0" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
  return element("td", { class: "number" }, text, element("div", { class: "signed" }, bar));
}

// The anchor of an all-wrong group is no right answer: the rescue only ranks it above the others.
const roleName = (role, outcome) => (role === "anchor" && outcome === "ALL_WRONG" ? "pseudo-anchor" : role);

const COLUMNS = ["#", "role", "verdict", "answer", "advantage", "tokens", "response"];

// A row of the table; the name of a cell's column stands beside it on a narrow screen.
function row(className, cells) {
  cells.forEach((cell, index) => cell.setAttribute("data-label", COLUMNS[index]));
  return element("tr", { class: className }, ...cells);
}

const noAdvantage = (why) => element("td", { class: "number" }, "–", element("small", { class: "why" }, why));

function rolloutRow(rollout, number, largest, sample) {
  const verdicts = element("div", { class: "badges" }, badge(rollout.correct ? "correct" : "wrong", rollout.correct ? "good" : "bad"));
  if (!rollout.parsed) verdicts.append(badge("no readable answer", ""));
  if (!rollout.format_ok) verdicts.append(badge("badly formed", ""));
  const isReplaced = rollout.role === "reflected";
  const advantage = isReplaced ? noAdvantage("its repair has it")
    : rollout.role === "unselected" ? element("td", { class: "number" }, "–") : advantageCell(rollout.advantage, largest);
  return row(isReplaced ? "replaced" : "", [
    element("td", { class: "number" }, String(number)),
    element("td", {}, isReplaced ? badge("failure", "reflected") : badge(roleName(rollout.role, sample.outcome), rollout.role)),
    element("td", {}, verdicts),
    element("td", {}, rollout.extracted ?? "–"),
    advantage,
    element("td", { class: "number" }, String(rollout.response_len)),
    element("td", {}, clipped(rollout.text))]);
}

// The repair of a failure takes its place in the subgroup, and has its advantage; a wrong one of an all-wrong group has none.
function repairRow(reflection, { role, advantage }, largest) {
  const words = reflection.before === "" ? [element("p", { class: "label" }, "the prompt was sampled once more")]
    : [element("p", { class: "text" }, element("span", { class: "failed" }, reflection.before), element("mark", {}, reflection.cue.trim() || "(no cue)")),
      element("p", { class: "label" }, "the failed rationale and the cue were given; the model went on with")];
  return row("repair", [
    element("td", { class: "number" }, `${reflection.rollout}′`),
    element("td", {}, badge("repair", "reflected")),
    element("td", {}, element("div", { class: "badges" }, badge(reflection.correct ? "repaired" : "still wrong", reflection.correct ? "good" : "bad"))),
    element("td", {}, (reflection.after.match(/<answer>(.*?)<\/answer>/s) ?? ["", "–"])[1]),
    role === "reflected" ? advantageCell(advantage, largest) : noAdvantage("not updated"),
    element("td", {}, "–"),
    element("td", {}, ...words, clipped(reflection.after))]);
}

function rolloutTable(sample) {
  const { rollouts, reflection } = sample;
  const largest = Math.max(1e-9, ...rollouts.map((rollout) => Math.abs(rollout.advantage)));
  const rows = rollouts.map((rollout, number) => ({ rollout, number }))
    .sort((a, b) => ROLES.indexOf(a.rollout.role) - ROLES.indexOf(b.rollout.role) || a.number - b.number);
  const table = (some) => {
    const made = element("table", { class: "rollouts" }, element("tr", { class: "head" }, ...COLUMNS.map((name) => element("th", {}, name))));
    for (const { rollout, number } of some) {
      made.append(rolloutRow(rollout, number, largest, sample));
      if (reflection !== null && reflection.rollout === number) made.append(repairRow(reflection, rollout, largest));
    }
    return element("div", { class: "scroll" }, made);
  };
  const isOutside = ({ rollout }) => rollout.role === "unselected";
  const inside = rows.filter((one) => !isOutside(one)), outside = rows.filter(isOutside);
  const tables = inside.length ? [table(inside)] : [];
  if (outside.length) {
    const right = outside.filter(({ rollout }) => rollout.correct).length;
    const words = `${outside.length} ${inside.length ? "responses outside the subgroup" : "responses"}: ${right} right, ${outside.length - right} wrong`;
    tables.push(element("details", { class: "outside" }, element("summary", {}, words), table(outside)));
  }
  return element("div", {}, ...tables);
}

// A card about a question: where it comes from, its images, its words, and then what is shown of the answers.
function questionCard({ source, run, images, prompt, answer, id, step }, mark, ...answers) {
  const head = element("div", { class: "group-head" }, element("b", {}, source), mark,
    ...[`step ${step}`, `id ${id}`, run].map((text) => element("span", {}, text)));
  const words = element("div", { class: "words" },
    element("p", { class: "label" }, "question"), element("p", { class: "text" }, prompt),
    element("p", { class: "label" }, "right answer"), element("p", { class: "text" }, element("b", {}, answer)));
  const question = element("div", { class: "question" }, element("div", { class: "images" }, ...images.map(picture)), words);
  return element("div", { class: "card group" }, head, question, ...answers);
}

function groupCard(sample) {
  const note = sample.note ? element("p", { class: "explained" }, sample.note) : null;
  return questionCard(sample, badge(OUTCOMES[sample.outcome] ?? sample.outcome, ""), note, rolloutTable(sample));
}

function answerCard(changed) {
  const answers = changed.answers.map(({ step, response, extracted, correct }) => element("div", { class: "answered" },
    element("p", { class: "label" }, `at step ${step} `, badge(correct ? "right" : "wrong", correct ? "good" : "bad"), " ", element("b", {}, extracted ?? "no answer")),
    clipped(response)));
  return questionCard(changed, badge(changed.change, changed.change === "newly right" ? "good" : "bad"), ...answers);
}

// What each browser shows, and what it can be narrowed to. `chosen` and `first` outlive an update.
const BROWSERS = {
  answers: { card: answerCard, listed: "grid wide", filters: { run: "run", source: "skill", change: "change" }, chosen: {}, first: 0 },
  samples: { card: groupCard, listed: "", filters: { run: "run", source: "skill", outcome: "outcome", step: "step" }, chosen: {}, first: 0 },
};

function browser(name, samples) {
  const state = BROWSERS[name], { filters, chosen } = state;
  const bar = element("div", { class: "filters" });
  const list = element("div", { class: state.listed });
  const count = element("span");
  const earlier = element("button", { type: "button" }, "← earlier");
  const later = element("button", { type: "button" }, "later →");
  const show = () => {
    const found = samples.filter((sample) => Object.keys(filters).every((key) => (chosen[key] ?? "") === "" || String(sample[key]) === chosen[key]));
    const first = state.first = Math.max(0, Math.min(state.first, found.length - 1));
    const shown = found.slice(first, first + PAGE_SIZE);
    count.textContent = shown.length ? `${first + 1}–${first + shown.length} of ${found.length}` : "none match";
    earlier.disabled = first === 0;
    later.disabled = first + PAGE_SIZE >= found.length;
    list.replaceChildren(...shown.map(state.card));
  };
  for (const [key, label] of Object.entries(filters)) {
    const values = [...new Set(samples.map((sample) => String(sample[key])))];
    if (key !== "step") values.sort();
    if (values.length < 2) continue;
    const select = element("select", {}, element("option", { value: "" }, "all"));
    values.forEach((value) => select.append(element("option", { value }, OUTCOMES[value] ?? value)));
    if (values.includes(chosen[key])) select.value = chosen[key];
    select.addEventListener("change", () => { chosen[key] = select.value; state.first = 0; show(); });
    bar.append(element("label", {}, `${label} `, select));
  }
  earlier.addEventListener("click", () => { state.first -= PAGE_SIZE; show(); });
  later.addEventListener("click", () => { state.first += PAGE_SIZE; show(); });
  bar.append(earlier, later, count);
  show();
  return [bar, list];
}
