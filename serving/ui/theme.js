// Sets the chosen theme before the page is drawn; without a choice, the page follows the system.
"use strict";
try {
  document.documentElement.dataset.theme = localStorage.getItem("theme") ?? "auto";
} catch {
  // a browser without storage follows the system
}
