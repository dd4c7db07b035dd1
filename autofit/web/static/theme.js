// Before the first paint: the theme that was chosen here last, if one was.
{
  const chosen = localStorage.getItem("autofit-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
