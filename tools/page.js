// Copy buttons, heading anchors, the contents mark, light and dark, and a search over headings and names.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

for (const heading of all("main :is(h2, h3, h4)[id]")) {
  const link = Object.assign(document.createElement("a"), { className: "anchor", href: "#" + heading.id, textContent: "#" });
  link.setAttribute("aria-label", "Link to this heading");
  heading.append(link);
}

if (navigator.clipboard) for (const block of all("div.sourceCode")) {
  const button = Object.assign(document.createElement("button"), { className: "copy", textContent: "copy" });
  button.onclick = async () => {
    await navigator.clipboard.writeText(block.querySelector("code").innerText);
    button.textContent = "copied";
    setTimeout(() => (button.textContent = "copy"), 1200);
  };
  block.append(button);
}

document.querySelector(".menu").onclick = ({ currentTarget }) => {
  const open = document.querySelector(".pages").classList.toggle("open");
  currentTarget.setAttribute("aria-expanded", open);
};

document.querySelector(".scheme").onclick = () => {
  const root = document.documentElement;
  const dark = root.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  root.style.colorScheme = dark === "dark" ? "light" : "dark";
  localStorage.setItem("scheme", root.style.colorScheme);
};

const marks = new Map(all(".toc a").map((a) => [decodeURIComponent(a.hash.slice(1)), a]));
const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    marks.forEach((a, id) => a.classList.toggle("here", id === target.id));
  }
}, { rootMargin: "-70px 0px -70% 0px" });
for (const heading of all("main :is(h2, h3)[id]")) if (marks.has(heading.id)) seen.observe(heading);

const box = document.querySelector(".search input");
const list = document.querySelector(".search ul");
box.oninput = () => {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  const score = ([, text]) => (text.toLowerCase().startsWith(words[0]) ? 0 : 1);
  const found = (words.length ? window.searchIndex : [])
    .filter(([page, text]) => words.every((word) => (page + " " + text).toLowerCase().includes(word)))
    .sort((a, b) => score(a) - score(b))
    .slice(0, 12);
  list.replaceChildren(...found.map(([page, text, href]) => {
    const link = Object.assign(document.createElement("a"), { href: document.body.dataset.base + href, textContent: text });
    link.append(Object.assign(document.createElement("small"), { textContent: page }));
    const item = document.createElement("li");
    item.append(link);
    return item;
  }));
  list.hidden = !found.length;
};
box.onkeydown = (event) => {
  if (event.key === "Enter") list.querySelector("a")?.click();
  if (event.key === "Escape") { box.value = ""; list.hidden = true; }
};
list.onclick = () => (list.hidden = true);
