// What all parts of the page use. Text from data enters the page as text, never as markup.

const byId = (id) => document.getElementById(id);

const once = (make) => {
  let made;
  return () => (made ??= { value: make() }).value;
};

const parsed = new Map();
/** The JSON block of that name, read when it is first asked for; null where the page has none. */
const data = (name) => {
  if (!parsed.has(name)) {
    const block = byId(`data-${name}`);
    parsed.set(name, block && JSON.parse(block.textContent));
  }
  return parsed.get(name);
};

/** An element with attributes and children, which are elements or text. */
const element = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};

const number = (value, digits = 3) =>
  value.toLocaleString("en", { maximumSignificantDigits: digits, minimumSignificantDigits: Math.min(digits, 2) });

const percent = (share) => (share === 0 ? "0 %" : `${number(100 * share, Math.abs(share) >= 0.1 ? 3 : 2)} %`);

/** A token as it is read in running text: a line's end is seen, and in a single line it does not break it. */
const readable = (word, breaks) => word.replaceAll("\n", breaks ? "↵\n" : "↵");

/** Calls once, when the node is first about to be seen and the page has been painted. */
const whenSeen = (node, act) => {
  const idle = window.requestIdleCallback ?? ((then) => setTimeout(then, 50));
  const watch = new IntersectionObserver(
    (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      watch.disconnect();
      requestAnimationFrame(() => idle(act, { timeout: 300 }));
    },
    { rootMargin: "300px" },
  );
  watch.observe(node);
};

const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const spy = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      const link = links.get(target.id);
      if (isIntersecting) link?.setAttribute("aria-current", "true");
      else link?.removeAttribute("aria-current");
    }
  },
  { rootMargin: "-30% 0px -70%" },
);
for (const section of document.querySelectorAll("main > section")) spy.observe(section);
