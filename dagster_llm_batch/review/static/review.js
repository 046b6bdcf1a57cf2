// Keys for who looks through many rows. All of it works by mouse and without this file, too.
"use strict";

const rows = [...document.querySelectorAll("tr[data-row]")];
let here = -1;

function goTo(index) {
  if (!rows.length) return;
  rows[here]?.classList.remove("here");
  here = Math.max(0, Math.min(rows.length - 1, index));
  rows[here].classList.add("here");
  rows[here].querySelector("a").focus({ preventScroll: true });
  rows[here].scrollIntoView({ block: "nearest" });
}

function follow(selector) {
  const link = document.querySelector(selector);
  if (link) link.click();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(input|select|textarea)$/i.test(event.target.tagName)) return;
  const keys = {
    j: () => goTo(here + 1),
    k: () => goTo(here - 1),
    n: () => follow("a[rel=next]"),
    p: () => follow("a[rel=prev]"),
    "/": () => document.querySelector("[data-key='/']")?.focus(),
  };
  const act = keys[event.key];
  if (act) {
    event.preventDefault();
    act();
  }
});
