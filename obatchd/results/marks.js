"use strict";
(() => {
  const cards = [...document.querySelectorAll("article[data-id]")];
  const bar = document.getElementById("marks");
  const key = "obatch marks " + document.title;
  const name = (card) => card.querySelector("h2").dataset.key;
  let marks = {}, current = -1;
  try { marks = JSON.parse(localStorage.getItem(key)) || {}; } catch { /* a private window, or a file that may not */ }

  // Wilson's score interval: see obatchd.results.rates, which cites it.
  function interval(count, of) {
    const z = 1.959963984540054, p = count / of;
    const middle = p + z * z / (2 * of), half = z * Math.sqrt(p * (1 - p) / of + z * z / (4 * of * of));
    return [middle - half, middle + half].map((end) => Math.min(1, Math.max(0, end / (1 + z * z / of))));
  }
  function show() {
    const given = cards.map((card) => marks[name(card)]).filter(Boolean);
    const right = given.filter((mark) => mark === "right").length;
    const percent = (share) => (100 * share).toFixed(0);
    let text = "Nothing is marked yet.";
    if (given.length) {
      const [low, high] = interval(right, given.length).map(percent);
      text = `Right: ${right} of ${given.length}, ${percent(right / given.length)} % ` +
        `(95 % interval ${low}–${high} %)`;
      if (given.length < cards.length) text += `; not marked: ${cards.length - given.length}`;
    }
    document.getElementById("rate").textContent = text;
    cards.forEach((card, place) => {
      card.classList.toggle("current", place === current);
      for (const button of card.querySelectorAll("button"))
        button.setAttribute("aria-pressed", String(button.value === marks[name(card)]));
    });
  }
  function go(place) {
    if (place < 0 || place >= cards.length) return;
    current = place;
    show();
    cards[place].scrollIntoView({ block: "start" });
  }
  function mark(place, value) {
    if (place < 0) return;
    const id = name(cards[place]);
    if (value && marks[id] !== value) marks[id] = value; else delete marks[id];
    try { localStorage.setItem(key, JSON.stringify(marks)); } catch { /* then they last as long as the page */ }
    show();
  }
  const keys = {
    r: () => { mark(current, "right"); go(current + 1); },
    w: () => { mark(current, "wrong"); go(current + 1); },
    u: () => mark(current, ""),
    j: () => go(current + 1),
    k: () => go(current - 1),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const pressed = event.key.toLowerCase(), act = keys[pressed];
    if (event.repeat && pressed !== "j" && pressed !== "k") return;  // a key that is held down marks one answer
    if (act) { event.preventDefault(); act(); }
  });
  cards.forEach((card, place) => card.addEventListener("click", (event) => {
    current = place;
    if (event.target.value) mark(place, event.target.value); else show();
  }));
  const cell = (text) => '"' + text.replaceAll('"', '""') + '"';
  document.getElementById("save").addEventListener("click", () => {
    const lines = cards.map((card) => `${cell(card.dataset.id)},${marks[name(card)] || ""}\r\n`);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["id,mark\r\n", ...lines], { type: "text/csv" }));
    link.download = "marks.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  bar.hidden = false;
  if (cards.length) current = 0;
  show();
})();
