const figures = JSON.parse(document.getElementById("figures").textContent);
// Nothing leaves the page: no button that would upload a figure.
const options = {responsive: true, displaylogo: false, scrollZoom: false, showSendToCloud: false, plotlyServerURL: "",
                 modeBarButtonsToRemove: ["lasso2d", "select2d"]};
const draw = (box) => { const f = figures[box.dataset.figure]; Plotly.newPlot(box, f.data, f.layout, options); };
const boxes = document.querySelectorAll(".plot");
const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
  if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
}), {rootMargin: "900px"});
boxes.forEach((box) => seen.observe(box));
window.addEventListener("beforeprint", () => boxes.forEach((box) => { if (!box.children.length) draw(box); }));
