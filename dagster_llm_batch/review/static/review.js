// Brings each page with the secret of this browser's session, and has keys for people who look through many rows.
// Where a proxy names the people, all of it works by mouse and without this file, too.
"use strict";

const STORED = "llm_batch_review";

let rows = [];
let here = -1;
let form = null;
let busy = false;
// Keys that were pressed while the next row loads.
let waiting = [];
// Addresses of the documents that are shown.
let documents = [];
let last = { key: "", at: -Infinity };
// Whether the page was last touched by a finger, and when a tap last judged a row or a new row was shown.
let touched = false;
let settled = -Infinity;

// A second press or tap within this time belongs to the same row.
const DOUBLE_MS = 300;

function secret() {
  try {
    return localStorage.getItem(STORED);
  } catch {
    return null;
  }
}

// The token of a new link opens a session once. It stands behind #, so that no request holds it by itself.
async function enter() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  history.replaceState(null, "", location.pathname + location.search);
  const answer = await fetch("/session", { method: "POST", body: token });
  if (answer.ok) localStorage.setItem(STORED, (await answer.json()).secret);
  // A link that was used may be opened again by the browser that it let in.
  else if (!secret()) throw new Error(await answer.text());
}

// `how` is what becomes of the address: push, replace, or keep.
async function load(url, options, how) {
  busy = true;
  try {
    const known = secret();
    const answer = await fetch(url, { ...options, headers: known ? { "x-review-secret": known } : {} });
    const text = await answer.text();
    // The same row is shown again: these keys were meant for the next one.
    if (!answer.ok) waiting = [];
    if (answer.headers.get("content-type")?.startsWith("text/html")) show(text);
    else tell(text);
    if (how === "push" && answer.url !== location.href) history.pushState(null, "", answer.url);
    else if (how !== "keep") history.replaceState(null, "", answer.url);
    if (how === "push") scrollTo(0, 0);
  } catch {
    const words = options.method ? "Nothing was stored." : "";
    warn(`The page's server does not answer. ${words} Start it again, or load this page again.`);
    waiting = [];
  }
  busy = false;
  while (waiting.length && !busy) handle(waiting.shift());
}

function show(text) {
  const next = new DOMParser().parseFromString(text, "text/html");
  const before = shownRow();
  document.title = next.title;
  document.body.replaceWith(document.adoptNode(next.body));
  start();
  // The next row is read from its beginning.
  if (before !== shownRow()) scrollTo(0, 0);
  settled = performance.now();
}

function shownRow() {
  return form && `${form.elements.partition.value}\n${form.elements.row_key.value}`;
}

function tell(text) {
  const heading = document.createElement("h1");
  heading.textContent = "Review";
  const words = document.createElement("pre");
  words.className = "told";
  words.textContent = text;
  document.getElementById("main").replaceChildren(heading, words);
  start();
}

function warn(text) {
  const words = document.createElement("p");
  words.className = "wrong";
  words.role = "alert";
  words.textContent = text;
  document.querySelector(".wrong")?.remove();
  document.getElementById("main").prepend(words);
}

function start() {
  rows = [...document.querySelectorAll("tr[data-row]")];
  here = -1;
  form = document.getElementById("judge");
  documents.forEach(URL.revokeObjectURL);
  documents = [...document.querySelectorAll("a[data-document]")].map(showDocument);
}

// Shows a PDF in the browser's own viewer, which has no access to this page. Elsewhere its link stays.
function showDocument(link) {
  if (!navigator.pdfViewerEnabled) return "";
  let content;
  try {
    content = atob(link.getAttribute("href").split(",")[1]);
  } catch {
    // The stored request is data, and may hold anything.
    return "";
  }
  const bytes = new Uint8Array(content.length);
  for (let at = 0; at < content.length; at++) bytes[at] = content.charCodeAt(at);
  const address = URL.createObjectURL(new Blob([bytes], { type: "application/pdf" }));
  const frame = document.createElement("iframe");
  frame.src = address + "#navpanes=0";
  frame.title = "Document of this row";
  link.parentElement.after(frame);
  return address;
}

function goTo(index) {
  if (!rows.length) return;
  rows[here]?.classList.remove("here");
  here = Math.max(0, Math.min(rows.length - 1, index));
  rows[here].classList.add("here");
  rows[here].querySelector("a").focus({ preventScroll: true });
  rows[here].scrollIntoView({ block: "nearest" });
}

// A number answers the first question that is open; where it is the only one, that is all.
function choose(number) {
  const groups = [...form.querySelectorAll("[data-choices]")];
  // Of several choices, more can be made while the focus is among them.
  const many = groups.find((group) => "many" in group.dataset && group.contains(document.activeElement));
  const open = many ?? groups.find((group) => !group.querySelector(":checked")) ?? groups[0];
  const choice = open?.querySelectorAll("input")[number - 1];
  if (!choice) return;
  choice.checked = "many" in open.dataset ? !choice.checked : true;
  choice.focus();
  if ("one" in form.dataset) press("Enter");
}

function press(key) {
  document.querySelector(`button[data-key="${key}"]`)?.click();
}

// Whether a key that judges a row, or takes a judgment back, is the second one of a double press.
function isDouble(event) {
  const judging = form && "one" in form.dataset ? /^([1-9bdsu]|Enter)$/ : /^([bdsu]|Enter)$/;
  if (!form || !judging.test(event.key)) return false;
  const again = event.key === last.key && event.timeStamp - last.at < DOUBLE_MS;
  if (!again) last = { key: event.key, at: event.timeStamp };
  return again;
}

// Do what a key stands for; return whether it stands for something.
function handle(key) {
  const keys = form
    ? {
        c: () => document.getElementById("comment").focus(),
        b: () => press("b"),
        d: () => press("d"),
        s: () => press("s"),
        u: () => press("u"),
        Enter: () => press("Enter"),
      }
    : {
        b: () => press("b"),
        j: () => goTo(here + 1),
        k: () => goTo(here - 1),
        n: () => document.querySelector("a[rel=next]")?.click(),
        p: () => document.querySelector("a[rel=prev]")?.click(),
        u: () => press("u"),
        "/": () => document.querySelector("[data-key='/']")?.focus(),
      };
  const act = form && /^[1-9]$/.test(key) ? () => choose(Number(key)) : keys[key];
  act?.();
  return Boolean(act);
}

// A document that was clicked has the keys until the mouse leaves it.
document.addEventListener("mousemove", () => document.activeElement?.matches("iframe") && document.activeElement.blur());

addEventListener("pointerdown", (event) => (touched = event.pointerType === "touch"));

document.addEventListener("keydown", (event) => {
  touched = false;
  const typing = event.target.matches("select, textarea, input:not([type=radio], [type=checkbox])");
  if (form && typing && event.key === "Escape") event.target.blur();
  if (form && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!busy) press("Enter");
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (typing && !(form && event.key === "Enter" && event.target.tagName === "INPUT")) return;
  // A key that is held down must not judge the next row, too.
  if (event.repeat || (event.key === "Enter" && event.target.tagName === "BUTTON")) return;
  if (isDouble(event)) {
    event.preventDefault();
    return;
  }
  // On other pages, the next page that a key leads to is known once this one has loaded.
  if (busy && (form || ["n", "p"].includes(event.key))) waiting.push(event.key);
  else if (!handle(event.key)) return;
  event.preventDefault();
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (link.origin !== location.origin || link.target || link.getAttribute("href").startsWith("#")) return;
  event.preventDefault();
  load(link.href, {}, "push");
});

// A tap on an answer of the only question sends it, as its key does. A tap that can only be meant for the row before
// does nothing.
document.addEventListener("click", (event) => {
  const judging = event.target.closest("#judge[data-one] input[type=radio], form[method=post] button");
  // The script presses buttons, too.
  if (!touched || !judging || !event.isTrusted) return;
  if (busy || event.timeStamp - settled < DOUBLE_MS) {
    event.preventDefault();
    return;
  }
  settled = event.timeStamp;
  if (judging.matches("input")) press("Enter");
});

document.addEventListener("submit", (event) => {
  event.preventDefault();
  if (busy) return;
  const data = new URLSearchParams(new FormData(event.target, event.submitter));
  const action = new URL(event.target.getAttribute("action") ?? location.href, location.href);
  if (event.target.getAttribute("method") === "post") {
    load(action, { method: "POST", body: data }, "replace");
  } else {
    action.search = data;
    load(action, {}, "push");
  }
});

addEventListener("popstate", () => load(location.href, {}, "keep"));

if ("shell" in document.body.dataset) {
  enter()
    .then(() => load(location.href, {}, "replace"))
    .catch((error) => tell(error.message));
} else start();
