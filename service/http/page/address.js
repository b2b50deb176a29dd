// The address of a path: fetch() refuses one with a password in it, as the page's may be.
export const address = (path) => `${location.origin}${path}`;
