"use strict";
// Asks the server for news, and draws the page again when there is some. What is unfolded stays so.

const EVERY = 3000; // milliseconds

function update({ parts, data }) {
  const open = new Set([...document.querySelectorAll("details[open][data-key]")].map((node) => node.dataset.key));
  for (const node of document.querySelectorAll("[data-part]")) node.innerHTML = parts[node.dataset.part];
  draw(data);
  for (const node of document.querySelectorAll("details[data-key]")) node.open = open.has(node.dataset.key);
}

async function follow() {
  const said = document.getElementById("live");
  let tag = "";
  for (;;) {
    try {
      const response = await fetch("/news", { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
      if (response.status === 200) {
        tag = response.headers.get("ETag");
        update(await response.json());
        said.textContent = `live, newest at ${new Date().toLocaleTimeString()}`;
      } else if (response.status !== 304) throw new Error(response.statusText);
    } catch (error) {
      said.textContent = "the server does not answer";
      tag = "";
    }
    await new Promise((resolve) => setTimeout(resolve, EVERY));
  }
}

follow();
