"use strict";
const dialog = document.querySelector("dialog");
const cards = [...document.querySelectorAll(".card")];
const part = (name) => dialog.querySelector(name);
let shown = 0;

// Everything is set as text or as an attribute: nothing of an object becomes markup.
function show(number) {
  shown = (number + cards.length) % cards.length;
  const card = cards[shown];
  const about = card.dataset;
  part(".stage").replaceChildren(card.querySelector(".picture").firstElementChild.cloneNode(true));
  part("h3").textContent = about.name;
  part("code").textContent = about.id === about.name ? "" : about.id;
  const query = card.closest("section").querySelector("h2").textContent;
  part(".facts").textContent = `rank ${about.rank}, score ${about.score}: ${query}`;
  part(".page").hidden = !about.link;
  if (about.link) part(".page").href = about.link;
  part(".copy").textContent = "Copy id";
  if (!dialog.open) dialog.showModal();
}

async function copy() {
  const id = cards[shown].dataset.id;
  try {
    await navigator.clipboard.writeText(id);
  } catch {  // a page from disk may not reach the clipboard the new way
    const area = document.createElement("textarea");
    area.value = id;
    dialog.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  part(".copy").textContent = "Copied";
}

cards.forEach((card, number) => card.addEventListener("click", () => show(number)));
part(".close").addEventListener("click", () => dialog.close());
part(".previous").addEventListener("click", () => show(shown - 1));
part(".next").addEventListener("click", () => show(shown + 1));
part(".copy").addEventListener("click", copy);
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") show(shown - 1);
  if (event.key === "ArrowRight") show(shown + 1);
});
