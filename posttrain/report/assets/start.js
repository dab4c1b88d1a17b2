// Unpacks what the page carries and starts its parts.

async function unpack(id) {
  const packed = document.getElementById(id).textContent;
  if (!packed) return "";
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function startTheme(redraw) {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("posttrain-theme"); } catch { /* a file: page may have no storage */ }
  if (chosen) root.dataset.theme = chosen;
  document.getElementById("theme").onclick = () => {
    const dark = (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("posttrain-theme", root.dataset.theme); } catch { /* as above */ }
    redraw();
  };
  system.addEventListener("change", redraw);
}

(async () => {
  let draw = () => {};
  startTheme(() => draw());
  const data = JSON.parse(await unpack("data"));
  if (data.rollouts.length) new RolloutBrowser(document.getElementById("rollouts"), data.rollouts);
  const plotly = await unpack("plotly");
  if (plotly) {
    const script = document.createElement("script");
    script.textContent = plotly;
    document.head.append(script);
    draw = buildCharts(data.sections, data.marks);
    draw();
  }
  document.documentElement.dataset.ready = "yes";
})();
