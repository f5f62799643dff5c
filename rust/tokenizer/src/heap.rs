//! A binary heap whose order is an argument of each call.
//!
//! The trainer's ties compare the bytes of tokens, which the entries do not carry. The heap of the
//! standard library needs the order in the items themselves (`Ord`), so each entry would have to
//! hold a copy of the bytes or a pointer to them.
//!
//! Making a heap of n items costs `O(n)`; `push` and `pop` cost `O(log n)`.

/// Items as a tree in an array: the children of item i are items 2i + 1 and 2i + 2.
///
/// No child is better than its parent. Every call must get the same order, or items come out in
/// none.
pub(crate) struct Heap<T> {
    items: Vec<T>,
}

impl<T: Copy> Heap<T> {
    /// A heap of `items` with the best on top; `better(a, b)` says that `a` comes before `b`.
    pub(crate) fn new(items: Vec<T>, better: impl Fn(&T, &T) -> bool) -> Self {
        let mut heap = Self { items };
        // From the last parent up: linear in the number of items, where pushing is n log n.
        for at in (0..heap.items.len() / 2).rev() {
            heap.sift_down(at, &better);
        }
        heap
    }

    /// Adds an item.
    pub(crate) fn push(&mut self, item: T, better: impl Fn(&T, &T) -> bool) {
        let mut at = self.items.len();
        self.items.push(item);
        while at > 0 {
            let parent = (at - 1) / 2;
            if !better(&self.items[at], &self.items[parent]) {
                break;
            }
            self.items.swap(at, parent);
            at = parent;
        }
    }

    /// Takes the best item.
    ///
    /// None if the heap is empty.
    pub(crate) fn pop(&mut self, better: impl Fn(&T, &T) -> bool) -> Option<T> {
        if self.items.is_empty() {
            return None;
        }
        // The last item takes the top and finds its place from there.
        let top = self.items.swap_remove(0);
        self.sift_down(0, &better);
        Some(top)
    }

    /// Moves the item at `at` down until no child is better.
    fn sift_down(&mut self, mut at: usize, better: &impl Fn(&T, &T) -> bool) {
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            if left >= self.items.len() {
                return;
            }
            let right_wins =
                right < self.items.len() && better(&self.items[right], &self.items[left]);
            let child = if right_wins { right } else { left };
            if !better(&self.items[child], &self.items[at]) {
                return;
            }
            self.items.swap(at, child);
            at = child;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_leave_best_first() {
        let numbers: Vec<u32> = (0..500u32)
            .map(|i| i.wrapping_mul(2_654_435_761) % 97)
            .collect();
        let mut heap = Heap::new(numbers[..300].to_vec(), |a, b| a > b);
        for &n in &numbers[300..] {
            heap.push(n, |a, b| a > b);
        }
        let mut sorted = numbers;
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        for n in sorted {
            assert_eq!(heap.pop(|a, b| a > b), Some(n));
        }
        assert_eq!(heap.pop(|a, b| a > b), None);
    }
}
