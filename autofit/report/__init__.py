"""Pictures and pages for people. The only room that draws; matplotlib is loaded when something is drawn, not before."""
