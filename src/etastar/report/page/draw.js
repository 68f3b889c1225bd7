const figures = JSON.parse(document.getElementById("figures").textContent);
const options = {responsive: true, displaylogo: false, scrollZoom: false,
                 modeBarButtonsToRemove: ["lasso2d", "select2d", "sendDataToCloud"]};
const draw = (box) => { const f = figures[box.dataset.figure]; Plotly.newPlot(box, f.data, f.layout, options); };
const boxes = document.querySelectorAll(".plot");
const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
  if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
}), {rootMargin: "900px"});
boxes.forEach((box) => seen.observe(box));
window.addEventListener("beforeprint", () => boxes.forEach((box) => { if (!box.children.length) draw(box); }));
