"use strict";
// The gallery: real and synthetic images by class. Thumbnails lie in sheets, blocks of text in the page, which are
// decoded when an image of theirs is first shown; cards are made as they come near the window.
const index = JSON.parse(document.getElementById("gallery-index").textContent);
const MORE = 60, CLASSES_AT_ONCE = 6, FIRST_OF_A_CLASS = 12;
const PER_SHEET = index.columns * index.columns;
const sheetUrls = new Map();
const root = document.getElementById("gallery");
const controls = {};

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children); // texts become text nodes: no markup in them is read
  return made;
}

function sheetUrl(kind, number) {
  const name = `${kind}-${number}`;
  if (!sheetUrls.has(name)) {
    const letters = atob(document.getElementById(name).textContent);
    const bytes = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
    sheetUrls.set(name, URL.createObjectURL(new Blob([bytes], { type: index[kind].type })));
  }
  return sheetUrls.get(name);
}

function tile(kind, place, label) {
  const made = element("span", { class: index[kind].pixelated ? "tile pixels" : "tile", role: "img", "aria-label": label });
  const cell = place % PER_SHEET, last = index.columns - 1;
  made.style.backgroundImage = `url(${sheetUrl(kind, Math.floor(place / PER_SHEET))})`;
  made.style.backgroundSize = `${index.columns * 100}% ${index.columns * 100}%`;
  made.style.backgroundPosition = `${(cell % index.columns) * 100 / last}% ${Math.floor(cell / index.columns) * 100 / last}%`;
  return made;
}

const number = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));

function realTile(place) {
  const { label, id } = index.real;
  const made = tile("real", place, `real image of ${index.classes[label[place]]}`);
  made.title = id[place];
  return made;
}

function card(place) {
  const images = index.synthetic;
  const get = (column) => (images[column] ? images[column][place] : null);
  const name = index.classes[images.label[place]], prompt = index.prompts[get("prompt")] || "";
  const made = element("li", { class: "card" });
  const link = element("a", { href: `../${index.pool}/${get("file").split("/").map(encodeURIComponent).join("/")}` });
  link.append(tile("synthetic", place, `synthetic image of ${name}, ${prompt}`));
  made.append(link);
  const values = [];
  if (images.weight) values.push(`weight ${number(get("weight"))}`);
  if (images.difficulty) {
    const requested = get("requested");
    values.push(`difficulty ${number(get("difficulty"))}` + (requested === null ? "" : `, asked ${number(requested)}`));
  }
  if (values.length) made.append(element("p", {}, values.join(" · ")));
  if (get("top")) {
    const said = get("top").map(([label, probability]) => `${index.classes[label]} ${Math.round(100 * probability)}\u00a0%`);
    made.append(element("p", {}, `label: ${said.join(", ")}`));
  }
  if (prompt) made.append(element("p", { class: "prompt", title: prompt }, prompt));
  made.append(element("p", { class: "quiet" }, `#${get("number")} · seed ${get("seed") ?? "–"}`));
  if (get("same") !== null) made.append(element("p", { class: "mark" }, `nearly the same as #${get("same")}`));
  if (get("copy") !== null) {
    made.append(element("p", { class: "mark" }, `nearly the same as a real image`, realTile(get("copy"))));
  }
  if (get("sources") !== null) {
    made.append(element("p", { class: "sources" }, "from ", ...get("sources").map(realTile)));
  }
  return made;
}

// Calls `more` whenever the end of a list comes near the window, until it returns false.
function lazily(parent, more) {
  const end = element("div", { class: "end" });
  parent.after(end);
  const watcher = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) {
      if (more()) { watcher.unobserve(end); watcher.observe(end); } else { watcher.disconnect(); end.remove(); }
    }
  }, { rootMargin: "600px" });
  watcher.observe(end);
}

function places(label) {
  const images = index.synthetic;
  if (!images) return [];
  const found = [];
  for (let place = 0; place < images.label.length; place++) {
    if ((label === null || images.label[place] === label) && !(controls.unique?.checked && images.same?.[place] != null)) found.push(place);
  }
  const column = images[controls.sort.value], sign = controls.order.value === "highest" ? -1 : 1;
  const rank = (place) => (column[place] === null ? Infinity : sign * column[place]);
  return found.sort((a, b) => (rank(a) === rank(b) ? images.number[a] - images.number[b] : rank(a) - rank(b)));
}

function realStrip(label) {
  const own = [];
  index.real.label.forEach((other, place) => { if (other === label) own.push(place); });
  const strip = element("div", { class: "strip" });
  const show = (from) => { for (const place of own.slice(from, from + 8)) strip.append(realTile(place)); };
  show(0);
  if (own.length > 8) {
    const button = element("button", { type: "button" }, `${own.length - 8} more`);
    button.onclick = () => { button.remove(); for (let from = 8; from < own.length; from += 8) show(from); };
    strip.append(button);
  }
  const total = index.real.count[label];
  const title = own.length < total ? `real, ${own.length} of ${total}` : `real, ${total}`;
  return element("div", { class: "group" }, element("h4", {}, title), strip);
}

function classBlock(label, limit) {
  const own = places(label), list = element("ul", { class: "cards" });
  const block = element("div", { class: "class" }, element("h3", {}, index.classes[label], " ", element("small", {}, index.stats[label])));
  block.append(realStrip(label));
  if (!own.length) return block;
  block.append(element("h4", {}, `synthetic, ${own.length.toLocaleString("en")}`), list);
  let shown = 0;
  const more = (count) => { for (const place of own.slice(shown, shown + count)) list.append(card(place)); shown += count; return shown < own.length; };
  if (limit === null) {
    more(MORE);
    lazily(list, () => more(MORE));
  } else if (more(limit)) {
    const button = element("button", { type: "button" }, `All ${own.length.toLocaleString("en")} of ${index.classes[label]}`);
    button.onclick = () => { controls.label.value = String(label); render(); controls.label.focus(); root.scrollIntoView(); };
    block.append(button);
  }
  return block;
}

function render() {
  const chosen = controls.label.value;
  const list = element("div", {});
  root.replaceChildren(list);
  if (chosen !== "all") { list.append(classBlock(Number(chosen), null)); return; }
  let next = 0;
  const more = () => {
    for (const end = Math.min(next + CLASSES_AT_ONCE, index.classes.length); next < end; next++) list.append(classBlock(next, FIRST_OF_A_CLASS));
    return next < index.classes.length;
  };
  if (more()) lazily(list, more);
}

function choice(name, title, options) {
  const select = element("select", { id: `gallery-${name}` });
  for (const [value, text] of options) select.append(element("option", { value }, text));
  select.onchange = render;
  controls[name] = select;
  return element("label", { for: `gallery-${name}` }, `${title} `, select);
}

const bar = document.getElementById("gallery-controls");
bar.append(choice("label", "Class", [["all", `all ${index.classes.length}`], ...index.classes.map((name, label) => [label, name])]));
if (index.synthetic) {
  bar.append(choice("sort", "Sort by", index.sorts), choice("order", "Order", [["highest", "highest first"], ["lowest", "lowest first"]]));
  if (index.sorts[0][0] === "number") controls.order.value = "lowest";
  if (index.synthetic.same) {
    controls.unique = element("input", { type: "checkbox", id: "gallery-unique" });
    controls.unique.onchange = render;
    bar.append(element("label", { for: "gallery-unique" }, controls.unique, " without near-duplicates"));
  }
}
render();
