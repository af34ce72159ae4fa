"use strict";
// Saves what was ticked as a file. Nothing is sent: the page may not open any connection.
const sheet = document.body.dataset;
const answers = [...document.querySelectorAll("article[data-code]")];
const axes = sheet.axes.split(" ");
const place = "edgemed-rating-" + sheet.key;
const rater = document.getElementById("rater");
const state = document.getElementById("state");

function chosen(code, axis) {
  const found = document.querySelector(`input[name="${code}-${axis}"]:checked`);
  return found ? found.value : null;
}

function rated(article) {
  const code = article.dataset.code;
  const points = {};
  for (const axis of axes) {
    const value = chosen(code, axis);
    if (value === null) return null;
    points[axis] = Number(value);
  }
  const act = chosen(code, "act");
  const comment = article.querySelector("textarea").value.trim();
  if (act === null) return null;
  return comment ? { points, act, comment } : { points, act };
}

function filled() {
  const ratings = {};
  for (const article of answers) {
    const one = rated(article);
    article.classList.toggle("done", one !== null);
    if (one !== null) ratings[article.dataset.code] = one;
  }
  return { schema: "edgemed.rating/1", key_sha256: sheet.key, rater: rater.value.trim(),
           answers: answers.length, ratings };
}

function show() {
  const done = Object.keys(filled().ratings).length;
  state.textContent = `${done} of ${answers.length} answers rated`;
}

function ticks() {
  const kept = { rater: rater.value };
  for (const input of document.querySelectorAll("input[type=radio]:checked")) kept[input.name] = input.value;
  for (const text of document.querySelectorAll("article textarea")) kept[text.name] = text.value;
  return kept;
}

function tick(kept) {
  for (const [name, value] of Object.entries(kept)) {
    if (name === "rater") { rater.value = value; continue; }
    for (const field of document.getElementsByName(name)) {
      if (field.type === "radio") field.checked = field.value === String(value);
      else field.value = value;
    }
  }
}

// A power cut should cost nothing; some browsers do not let a file remember, and then only Save helps.
function remember() {
  try { localStorage.setItem(place, JSON.stringify(ticks())); } catch (refused) { return; }
}

function recall() {
  try { tick(JSON.parse(localStorage.getItem(place) || "{}")); } catch (refused) { return; }
}

function save() {
  if (!rater.value.trim()) {
    rater.focus();
    state.textContent = "First write who rates: a letter or a number is enough.";
    return;
  }
  const link = document.createElement("a");
  const name = rater.value.trim().replace(/[^A-Za-z0-9]+/g, "-");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(filled(), null, 1) + "\n"], { type: "application/json" }));
  link.download = `rating-${sheet.key.slice(0, 8)}-${name}.json`;
  link.click();
}

// Two people at one computer: the second must not see what the first has ticked.
function clear() {
  if (!confirm("Forget all that is ticked on this computer? Save first.")) return;
  try { localStorage.removeItem(place); } catch (refused) { /* It was not remembered either. */ }
  rater.value = "";
  for (const field of document.querySelectorAll("article input")) field.checked = false;
  for (const field of document.querySelectorAll("article textarea")) field.value = "";
  show();
}

async function load(event) {
  try {
    const read = JSON.parse(await event.target.files[0].text());
    if (read.key_sha256 !== sheet.key) throw new Error("of another sheet");
    rater.value = read.rater;
    for (const [code, one] of Object.entries(read.ratings)) {
      const kept = { [`${code}-act`]: one.act, [`${code}-comment`]: one.comment || "" };
      for (const [axis, value] of Object.entries(one.points)) kept[`${code}-${axis}`] = value;
      tick(kept);
    }
    remember();
    show();
  } catch (error) {
    state.textContent = "This file was not saved by this sheet.";
  }
}

document.getElementById("save").addEventListener("click", save);
document.getElementById("clear").addEventListener("click", clear);
document.getElementById("load").addEventListener("change", load);
document.addEventListener("input", () => { remember(); show(); });
document.getElementById("bar").hidden = false;
recall();
show();
