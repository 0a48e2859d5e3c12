// A link to a section of the Learn tab, such as href="#learn-rank", opens the tab there from anywhere on the page.
document.addEventListener('click', (event) => {
  const link = event.target.closest('a[href^="#learn-"]');
  if (!link) return;
  event.preventDefault();
  const tabs = [...document.querySelectorAll('#main-tabs button')];
  // On a narrow page the tab is in the menu of those that found no room, and there it has a name only.
  const tab = tabs.find((button) => button.dataset.tabId === 'learn') ??
    tabs.find((button) => button.checkVisibility?.() !== false && button.textContent.trim() === 'Learn');
  tab?.click();
  const until = performance.now() + 5000; // ms: the tab is built when it is opened first
  const scroll = () => {
    const section = document.querySelector(link.hash);
    if (section?.offsetParent) section.scrollIntoView({ behavior: 'smooth', block: 'start' });
    else if (performance.now() < until) requestAnimationFrame(scroll);
  };
  scroll();
});
