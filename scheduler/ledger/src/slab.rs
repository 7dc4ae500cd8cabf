//! Dense numbers for names: a uid or a name is looked up once per event, everything after that is by number.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::marker::PhantomData;

/// A number that stands for a name of one kind.
pub(crate) trait Key: Copy + Ord {
    /// The number of a place.
    fn new(place: usize) -> Self;
    /// The place of a number.
    fn place(self) -> usize;
}

macro_rules! keys {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) struct $name(u32);

        impl Key for $name {
            fn new(place: usize) -> Self {
                // Four billion objects do not fit in any cluster; past them nothing is found, and nothing is wrong.
                Self(u32::try_from(place).unwrap_or(u32::MAX))
            }

            fn place(self) -> usize {
                self.0 as usize
            }
        }
    )*};
}

keys! {
    /// A node, by its name.
    NodeId
    /// A pod, by its uid.
    PodId
    /// A VM, by its uid.
    VmId
}

/// Only looked up, never walked: the order of a hash map decides nothing. Its keys are fixed, since a brain asks nobody for
/// random numbers.
type Index = HashMap<String, usize, BuildHasherDefault<DefaultHasher>>;

/// Things by number and by name. Numbers of what was removed are given again.
#[derive(Debug, Clone)]
pub(crate) struct Slab<K, T> {
    slots: Vec<Option<(String, T)>>,
    free: Vec<usize>,
    index: Index,
    kind: PhantomData<K>,
}

impl<K, T> Default for Slab<K, T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), index: Index::default(), kind: PhantomData }
    }
}

impl<K: Key, T> Slab<K, T> {
    pub(crate) fn find(&self, name: &str) -> Option<K> {
        self.index.get(name).map(|place| K::new(*place))
    }

    pub(crate) fn get(&self, key: K) -> Option<&T> {
        self.slots.get(key.place())?.as_ref().map(|(_, item)| item)
    }

    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut T> {
        self.slots.get_mut(key.place())?.as_mut().map(|(_, item)| item)
    }

    /// Empty for a number that stands for nothing.
    pub(crate) fn name(&self, key: K) -> &str {
        self.slots.get(key.place()).and_then(Option::as_ref).map_or("", |(name, _)| name)
    }

    /// The number of a name; what is not there yet is made.
    pub(crate) fn find_or_insert(&mut self, name: &str, make: impl FnOnce(K) -> T) -> K {
        if let Some(key) = self.find(name) {
            return key;
        }
        let place = self.free.pop().unwrap_or(self.slots.len());
        let key = K::new(place);
        let slot = Some((name.to_owned(), make(key)));
        match self.slots.get_mut(place) {
            Some(free) => *free = slot,
            None => self.slots.push(slot),
        }
        self.index.insert(name.to_owned(), place);
        key
    }

    pub(crate) fn remove(&mut self, key: K) -> Option<T> {
        let (name, item) = self.slots.get_mut(key.place())?.take()?;
        self.index.remove(&name);
        self.free.push(key.place());
        Some(item)
    }

    /// Everything, in the order of numbers: it depends on what was there before, so no decision may depend on it.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (K, &str, &T)> {
        self.slots.iter().enumerate().filter_map(|(place, slot)| {
            slot.as_ref().map(|(name, item)| (K::new(place), name.as_str(), item))
        })
    }

    /// Those that `wanted` picks, in the order of their names.
    pub(crate) fn by_name(&self, wanted: impl Fn(&str, &T) -> bool) -> Vec<K> {
        let all = self.iter().filter(|(_, name, item)| wanted(name, item));
        let mut keys: Vec<K> = all.map(|(key, ..)| key).collect();
        self.sort(&mut keys);
        keys
    }

    /// Sorts by names.
    pub(crate) fn sort(&self, keys: &mut [K]) {
        if keys.len() > 1 {
            keys.sort_by(|one, other| self.name(*one).cmp(self.name(*other)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_again_and_names_decide_the_order() {
        let mut slab = Slab::<PodId, u32>::default();
        let b = slab.find_or_insert("b", |_| 1);
        let a = slab.find_or_insert("a", |_| 2);
        assert_eq!(slab.find_or_insert("b", |_| 9), b);
        assert_eq!(slab.by_name(|_, _| true), [a, b]);
        assert_eq!((slab.remove(b), slab.remove(b), slab.find("b")), (Some(1), None, None));
        let c = slab.find_or_insert("c", |_| 3);
        assert_eq!(c, b);
        assert_eq!(
            (slab.name(c), slab.get(c), slab.by_name(|_, _| true)),
            ("c", Some(&3), vec![a, c])
        );
    }
}
