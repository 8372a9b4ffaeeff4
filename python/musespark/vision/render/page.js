"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector) => [...document.querySelectorAll(selector)];
  const steps = all(".step");
  const slider = document.getElementById("slider");
  const everything = document.getElementById("all");
  if (!steps.length) return;

  // Numbers keep the size of other text however wide the picture is drawn.
  const fit = () => {
    for (const svg of all(".picture")) {
      const box = svg.viewBox.baseVal;
      const shown = svg.getBoundingClientRect();
      if (!shown.width || !shown.height) continue;
      const k = Math.max(box.width / shown.width, box.height / shown.height);
      for (const tag of svg.querySelectorAll(".tag")) {
        tag.setAttribute("transform", `translate(${tag.dataset.x} ${tag.dataset.y}) scale(${k})`);
      }
    }
  };

  const go = (to) => {
    const now = Math.min(Math.max(to, 0), steps.length - 1);
    slider.value = String(now);
    document.getElementById("position").textContent = `${now + 1} / ${steps.length}`;
    for (const one of all("[data-step]")) {
      one.classList.toggle("here", Number(one.dataset.step) === now);
    }
    for (const one of all("figure")) {
      one.classList.toggle("here", one.dataset.image === steps[now].dataset.image);
    }
    fit();
  };

  const showAll = (on) => {
    everything.checked = on;
    root.classList.toggle("all", on);
  };

  root.classList.add("js");
  document.querySelector(".controls").hidden = false;
  slider.addEventListener("input", () => go(Number(slider.value)));
  document.getElementById("previous").addEventListener("click", () => go(Number(slider.value) - 1));
  document.getElementById("next").addEventListener("click", () => go(Number(slider.value) + 1));
  everything.addEventListener("change", () => showAll(everything.checked));
  for (const button of all(".crops button[data-step]")) {
    button.addEventListener("click", () => go(Number(button.dataset.step)));
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const now = Number(slider.value);
    const keys = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: steps.length - 1 };
    if (event.key === "a") showAll(!everything.checked);
    else if (event.key in keys && event.target !== slider) go(keys[event.key]);
    else return;
    event.preventDefault();
  });
  window.addEventListener("resize", fit);
  go(0);
})();
