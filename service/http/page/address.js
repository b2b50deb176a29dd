// Where a path of the service is: fetch() takes no address that holds a password, as the page's may.
export const address = (path) => `${location.origin}${path}`;
