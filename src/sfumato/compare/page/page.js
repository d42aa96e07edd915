"use strict";
const left = document.getElementById("left");
const right = document.getElementById("right");
const samples = [...document.querySelectorAll(".sample")];

function show() {
  const [first, second] = [left, right].map((select) => Number(select.value));
  const pair = [first, second].sort((a, b) => a - b).join("-");
  for (const sample of samples) {
    const sides = [[first, ".over", ".left", left], [second, ".under", ".right", right]];
    for (const [model, picture, tag, select] of sides) {
      const name = select.options[model].textContent;
      const image = sample.querySelector(picture);
      image.src = sample.querySelector(`img[data-model="${model}"]`).src;
      image.alt = name;
      sample.querySelector(tag).textContent = name;
    }
    for (const map of sample.querySelectorAll("[data-pair]")) {
      map.hidden = map.dataset.pair !== pair;
    }
  }
}

function choose(changed, other, before) {
  if (changed.value === other.value) other.value = before;
  show();
}

let chosen = ["0", "0"];
function remember() {
  chosen = [left.value, right.value];
}
left.addEventListener("change", () => { choose(left, right, chosen[0]); remember(); });
right.addEventListener("change", () => { choose(right, left, chosen[1]); remember(); });
document.getElementById("swap").addEventListener("click", () => {
  [left.value, right.value] = [right.value, left.value];
  show();
  remember();
});

for (const sample of samples) {
  const range = sample.querySelector("input");
  const frame = sample.querySelector(".frame");
  const cut = () => {
    frame.style.setProperty("--cut", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value}% ${left.selectedOptions[0].textContent}`);
  };
  range.addEventListener("input", cut);
}

document.documentElement.classList.add("scripted");
left.value = document.querySelector("main").dataset.reference;
right.value = left.value === "0" ? "1" : "0";
remember();
show();
