const THEME = "margay.theme";
const NAMES = { "": "as the system", light: "light", dark: "dark" };

/** A button that goes round light, dark and the system's own; the choice stays in this browser. */
export function bindTheme(button) {
  const show = () => {
    const theme = localStorage.getItem(THEME) ?? "";
    document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${NAMES[theme] ?? "as the system"}`;
  };
  button.addEventListener("click", () => {
    const order = ["", "light", "dark"];
    localStorage.setItem(THEME, order[(order.indexOf(localStorage.getItem(THEME) ?? "") + 1) % order.length]);
    show();
  });
  show();
}
