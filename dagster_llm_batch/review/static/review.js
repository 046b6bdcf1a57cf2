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

const form = document.getElementById("judge");

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

let sent = false;

function press(key) {
  const button = document.querySelector(`button[data-key="${key}"]`);
  // A key that is held down must not judge the next row, too.
  if (!button || sent) return;
  sent = true;
  button.click();
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("select, textarea, input:not([type=radio], [type=checkbox])");
  if (form && typing && event.key === "Escape") event.target.blur();
  if (form && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    press("Enter");
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (typing && !(form && event.key === "Enter" && event.target.tagName === "INPUT")) return;
  const keys = form
    ? {
        c: () => document.getElementById("comment").focus(),
        d: () => press("d"),
        s: () => press("s"),
        u: () => press("u"),
        Enter: () => press("Enter"),
      }
    : {
        j: () => goTo(here + 1),
        k: () => goTo(here - 1),
        n: () => follow("a[rel=next]"),
        p: () => follow("a[rel=prev]"),
        u: () => press("u"),
        "/": () => document.querySelector("[data-key='/']")?.focus(),
      };
  const act = form && /^[1-9]$/.test(event.key) ? () => choose(Number(event.key)) : keys[event.key];
  if (act && !(event.key === "Enter" && event.target.tagName === "BUTTON")) {
    event.preventDefault();
    act();
  }
});
