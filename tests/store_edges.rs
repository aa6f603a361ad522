//! Stores fail at their edges: on a disk that is full, in a folder that cannot be replaced, where a move leads into names
//! that it empties itself, and beside another program that tidies up.

#[path = "common/stored.rs"]
mod stored;

use pleach::store::Store;
use stored::{content, info, labelled, lattice, scratch, seed_of, verified};

#[test]
fn a_move_may_give_a_node_the_name_that_another_gives_up() {
    let folder = scratch();
    let store = Store::create(&folder.path().join("store"), info(), lattice()).unwrap();
    let [before, after] = [["a/b", "a/b/a", "a/b/b", "a/b/b/a", "a/b/b/b"], ["a", "a/a", "a/b", "a/b/a", "a/b/b"]];
    for (seed, name) in (1..).zip(before) {
        store.publish(name, content(seed), labelled(seed)).unwrap();
    }
    store.move_to("a/b", "a", None).unwrap();
    let nodes = store.list("", None, usize::MAX).unwrap();
    assert_eq!(nodes.iter().map(|node| &node.name[..]).collect::<Vec<_>>(), after);
    for (seed, node) in (1..).zip(&nodes) {
        assert_eq!(seed_of(&store, &node.version).unwrap(), seed, "{}", node.name);
        assert_eq!(node.version.parent, node.name.rsplit_once('/').map_or("", |(parent, _)| parent));
    }
    verified(&store);
}
