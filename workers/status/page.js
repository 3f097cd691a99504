"use strict";
// Fetches the page again and changes what is different, so that whoever reads it keeps place, selection and focus.
const EVERY_MS = 5000;
const pause = document.getElementById("pause");
const stale = document.getElementById("stale");
let heardAt = new Date();

function change(old, fresh) {
  if (old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
  } else if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
  } else {
    for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    const before = [...old.childNodes], after = [...fresh.childNodes];
    after.forEach((child, place) => (place < before.length ? change(before[place], child) : old.append(child)));
    before.slice(after.length).forEach((child) => child.remove());
  }
}

async function refresh() {
  if (pause.getAttribute("aria-pressed") === "true" || document.hidden) return;
  try {
    const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(EVERY_MS) });
    if (!answer.ok) throw new Error(`it answers ${answer.status}`);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    change(document.getElementById("page"), fresh.getElementById("page"));
    document.title = fresh.title;
    heardAt = new Date();
    stale.hidden = true;
  } catch {
    const said = `✕ The worker has not answered since ${heardAt.toLocaleTimeString()}: what stands here is old.`;
    if (stale.hidden) stale.textContent = said;
    stale.hidden = false;
    document.title = "No answer · mristream";
  }
}

pause.hidden = false;
pause.addEventListener("click", () => {
  const paused = pause.getAttribute("aria-pressed") !== "true";
  pause.setAttribute("aria-pressed", String(paused));
  if (!paused) refresh();
});
document.addEventListener("visibilitychange", refresh);
setInterval(refresh, EVERY_MS);
